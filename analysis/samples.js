// The page of all samples. The data's files are scripts that call `tdrsData`: a page that is opened from the disk may not
// read other files. All texts are set as text, never as HTML.
"use strict";

const KEPT = 6; // files of details that stay in memory
const FILTERS = ["search", "condition", "method", "category", "change", "low", "high"];
const study = JSON.parse(document.getElementById("study").textContent);
const part = (id) => document.getElementById(id);
const waiting = new Map(); // by a file's name: its promise, and what resolves it
let conditions = []; // with their columns, in the order of the study
let found = []; // the numbers of the answers that pass the filters
let order = []; // the same, sorted
let orderOf = ""; // by what
let shown = null; // the number of the answer whose sample is open
let written = null; // the address that this script wrote itself
let grid = null;

window.tdrsData = (name, values) => waiting.get(name)?.resolve(values);

function load(name) {
  if (!waiting.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    const script = document.createElement("script");
    script.src = `samples/${name}.js`;
    script.onload = () => script.remove();
    script.onerror = () => {
      waiting.delete(name);
      script.remove();
      entry.reject(new Error(`samples/${name}.js is missing; the command at the end of this page writes it again`));
    };
    waiting.set(name, entry);
    document.head.append(script);
  }
  return waiting.get(name).promise;
}

async function details(condition, sample) {
  const name = condition.details[Math.floor(sample / study.chunk)];
  const values = await load(name);
  const entry = waiting.get(name);
  waiting.delete(name);
  waiting.set(name, entry); // now it is the latest
  for (const old of [...waiting.keys()].slice(0, -KEPT)) waiting.delete(old);
  return values[sample % study.chunk];
}

// Answers have numbers: those of a condition follow each other, sample by sample, row by row.
async function readConditions() {
  let first = 0;
  for (const about of study.conditions) {
    const data = await load(about.table);
    waiting.delete(about.table);
    const numbers = (values) => Float64Array.from(values, (value) => value ?? NaN);
    const rows = about.rows.map((row, number) => ({
      ...row,
      answers: Uint32Array.from(data.rows[number].answers),
      scores: numbers(data.rows[number].scores),
      margins: numbers(data.rows[number].margins),
    }));
    conditions.push({ ...about, ...data, rows, first, categories: Uint32Array.from(data.categories) });
    first += about.size * rows.length;
  }
}

function at(number) {
  const condition = conditions.findLast((one) => one.first <= number);
  const place = number - condition.first;
  const row = place % condition.rows.length;
  return { condition, sample: Math.floor(place / condition.rows.length), row, about: condition.rows[row] };
}

function changeOf({ condition, sample, row, about }) {
  if (!condition.stock || row === 0) return "";
  const difference = about.scores[sample] - condition.rows[0].scores[sample];
  return difference > 0 ? "gained" : difference < 0 ? "lost" : "same";
}

const shiftOf = ({ condition, sample, row, about }) =>
  condition.stock && row > 0 ? about.margins[sample] - condition.rows[0].margins[sample] : NaN;

// What the table shows of an answer; `sort` reads the same values.
const COLUMNS = {
  condition: { title: "condition", of: ({ condition }) => condition.name, flex: 2 },
  method: { title: "row", of: ({ about }) => about.name, flex: 2 },
  id: { title: "sample", of: ({ condition, sample }) => condition.ids[sample] },
  category: { title: "category", of: ({ condition, sample }) => condition.names[condition.categories[sample]] },
  question: { title: "question", of: ({ condition, sample }) => condition.questions[sample], flex: 3 },
  gold: { title: "gold", of: ({ condition, sample }) => condition.golds[sample] },
  stock: {
    title: "stock's answer",
    of: ({ condition, sample }) => (condition.stock ? condition.texts[condition.rows[0].answers[sample]] : ""),
  },
  answer: { title: "answer", of: ({ condition, sample, about }) => condition.texts[about.answers[sample]] },
  change: { title: "beside stock", of: changeOf, mark: (value) => value },
  score: { title: "score", of: ({ sample, about }) => about.scores[sample], digits: 2 },
  margin: { title: "margin", of: ({ sample, about }) => about.margins[sample], digits: 2 },
  shift: { title: "margin − stock's", of: shiftOf, digits: 2, sign: true },
};

function shownNumber(value, digits, sign = false) {
  if (!Number.isFinite(value)) return "";
  const text = Number.isInteger(value) && !sign ? String(value) : value.toFixed(digits);
  return (sign && value > 0 ? "+" : "") + text.replace("-", "−");
}

function filtered() {
  const value = Object.fromEntries(FILTERS.map((id) => [id, part(id).value]));
  const needle = value.search.trim().toLowerCase();
  const low = value.low === "" ? -Infinity : Number(value.low);
  const high = value.high === "" ? Infinity : Number(value.high);
  const anyMargin = value.low === "" && value.high === "";
  const has = (text) => text.toLowerCase().includes(needle);
  const numbers = [];
  const counts = { gained: 0, lost: 0, same: 0, "": 0 };
  for (const [place, condition] of conditions.entries()) {
    if (value.condition !== "" && Number(value.condition) !== place) continue;
    const inCategory = condition.names.map((names) => !value.category || names.split(",").includes(value.category));
    const inTexts = condition.texts.map(has);
    const rows = [...condition.rows.keys()].filter((row) => !value.method || condition.rows[row].name === value.method);
    for (let sample = 0; sample < condition.size; sample++) {
      if (!inCategory[condition.categories[sample]]) continue;
      const inSample = has(condition.ids[sample]) || has(condition.questions[sample]) || has(condition.golds[sample]);
      for (const row of rows) {
        const about = condition.rows[row];
        if (!inSample && !inTexts[about.answers[sample]]) continue;
        if (!anyMargin && !(about.margins[sample] >= low && about.margins[sample] <= high)) continue;
        const change = changeOf({ condition, sample, row, about });
        if (value.change === "changed" ? change !== "gained" && change !== "lost" : value.change && change !== value.change) continue;
        counts[change]++;
        numbers.push(condition.first + sample * condition.rows.length + row);
      }
    }
  }
  return { numbers, counts };
}

// Sorted by one column; numbers that were not measured come last, and equal ones stay in the order of the study.
function sorted(numbers, model) {
  if (!model.length) return numbers;
  const { of, digits } = COLUMNS[model[0].colId];
  const down = model[0].sort === "desc";
  let values = numbers.map((number) => of(at(number)));
  if (digits === undefined) {
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    const rank = new Map([...new Set(values)].sort(compare).map((text, place) => [text, place]));
    values = values.map((text) => rank.get(text));
  }
  const weight = Float64Array.from(values, (value) => (Number.isNaN(value) ? Infinity : down ? -value : value));
  const places = [...weight.keys()].sort((a, b) => (weight[a] === weight[b] ? a - b : weight[a] < weight[b] ? -1 : 1));
  return places.map((place) => numbers[place]);
}

function count(number, word) {
  return `${number.toLocaleString("en")} ${word}`;
}

function filter() {
  const { numbers, counts } = filtered();
  found = order = numbers;
  orderOf = "";
  const total = conditions.reduce((sum, one) => sum + one.size * one.rows.length, 0);
  part("status").textContent =
    `${count(numbers.length, "of")} ${count(total, "answers")}: ${count(counts.gained, "gained")}, ` +
    `${count(counts.lost, "lost")}, ${count(counts.same, "with the stock model's score")}`;
  if (grid) {
    grid.setGridOption("datasource", { getRows: give });
    grid.paginationGoToFirstPage();
  }
}

function give(params) {
  const by = JSON.stringify(params.sortModel);
  if (by !== orderOf) order = sorted(found, params.sortModel);
  orderOf = by;
  const rows = order.slice(params.startRow, params.endRow).map((number) => {
    const place = at(number);
    return { number, ...Object.fromEntries(Object.entries(COLUMNS).map(([id, column]) => [id, column.of(place)])) };
  });
  params.successCallback(rows, order.length);
}

function makeGrid() {
  const several = conditions.length > 1;
  const columns = Object.entries(COLUMNS).map(([id, { title, digits, sign, flex, mark }]) => ({
    field: id,
    headerName: title,
    hide: id === "condition" && !several,
    flex: flex ?? 1,
    minWidth: flex ? 140 : 80,
    type: digits === undefined ? undefined : "rightAligned",
    valueFormatter: digits === undefined ? undefined : ({ value }) => shownNumber(value, digits, sign),
    cellClass: mark ? ({ value }) => mark(value) : undefined,
  }));
  const theme = agGrid.themeQuartz
    .withPart(agGrid.colorSchemeVariable)
    .withParams({ fontFamily: "inherit", fontSize: 13, spacing: 5 });
  grid = agGrid.createGrid(part("grid"), {
    theme,
    columnDefs: columns,
    defaultColDef: { sortable: true, resizable: true, suppressMovable: true, wrapHeaderText: true, autoHeaderHeight: true },
    rowModelType: "infinite",
    datasource: { getRows: give },
    infiniteInitialRowCount: found.length,
    cacheBlockSize: 100,
    maxBlocksInCache: 4,
    pagination: true,
    paginationPageSize: 50,
    paginationPageSizeSelector: [20, 50, 100, 500],
    suppressMultiSort: true,
    suppressDragLeaveHidesColumns: true,
    ensureDomOrder: true,
    // Tab goes from the columns' heads to the samples, and from there out of the table; arrow keys move in it.
    tabToNextCell: () => false,
    tabToNextHeader: ({ backwards, api }) =>
      !backwards && order.length ? { headerRowIndex: -1, column: api.getAllDisplayedColumns()[0] } : false,
    onRowClicked: ({ data }) => data && open(data.number),
    onCellKeyDown: ({ data, event }) => {
      if (data && event.key === "Enter") {
        event.preventDefault();
        open(data.number);
      }
    },
  });
  grid.setGridAriaProperty("label", "samples");
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function pictureOf(file, number, of, id) {
  const words = `picture${of > 1 ? ` ${number} of ${of}` : ""} of sample ${id}`;
  if (file === null) return element("p", `${words}: it cannot be read`, { class: "warning" });
  const image = element("img", undefined, { alt: words });
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 160);
  image.onerror = () => image.replaceWith(element("p", `${words}: samples/${file} is missing`, { class: "warning" }));
  image.src = `samples/${file}`;
  return image;
}

function answersTable({ condition, sample, row }, answers) {
  const table = element("table");
  table.append(element("caption", "What each row answered"));
  const head = element("tr");
  for (const title of ["row", "answer", "read as", "beside stock", "score", "margin", "margin − stock's"]) {
    head.append(element("th", title, { scope: "col" }));
  }
  table.append(element("thead"), element("tbody"));
  table.tHead.append(head);
  condition.rows.forEach((about, number) => {
    const place = { condition, sample, row: number, about };
    const [said, read] = answers[number];
    const line = element("tr", undefined, number === row ? { "aria-current": "true" } : {});
    const name = about.tuned ? `${about.name} (tuned on ${about.tuned} trials)` : about.name;
    const change = changeOf(place);
    line.append(
      element("th", name, { scope: "row" }),
      element("td", said, { class: "said" }),
      element("td", read, { class: "said" }),
      element("td", change, { class: change }),
      element("td", shownNumber(about.scores[sample], 3), { class: "n" }),
      element("td", shownNumber(about.margins[sample], 3), { class: "n" }),
      element("td", shownNumber(shiftOf(place), 3, true), { class: "n" }),
    );
    table.tBodies[0].append(line);
  });
  const wide = element("div", undefined, { class: "wide", tabindex: "0", role: "region", "aria-label": "answers" });
  wide.append(table);
  return wide;
}

async function open(number) {
  shown = number;
  const place = at(number);
  const { condition, sample } = place;
  const content = part("content");
  part("title").textContent = `Sample ${condition.ids[sample]} — ${condition.name}`;
  const index = order.indexOf(number);
  part("previous").disabled = index <= 0;
  part("next").disabled = index < 0 || index === order.length - 1;
  if (!part("sample").open) part("sample").showModal();
  let all;
  try {
    all = await details(condition, sample);
  } catch (error) {
    content.replaceChildren(element("p", error.message, { class: "warning" }));
    return;
  }
  if (shown !== number) return; // another one was opened meanwhile
  const parts = [];
  if (all.pictures) {
    const pictures = element("div", undefined, { class: "pictures" });
    all.pictures.forEach((file, n) => pictures.append(pictureOf(file, n + 1, all.pictures.length, condition.ids[sample])));
    parts.push(pictures);
  }
  if (all.passage !== undefined) parts.push(element("h3", "Passage"), element("p", all.passage, { class: "text" }));
  const list = element("dl");
  const facts = [["question", all.question], ["gold", all.gold], ["image", all.image]];
  facts.push(["category", condition.names[condition.categories[sample]]]);
  if (all.weight !== 1) facts.push(["weight", String(all.weight)]);
  for (const [name, value] of facts) if (value) list.append(element("dt", name), element("dd", value));
  parts.push(list, answersTable(place, all.answers), element("h3", "Prompt"));
  const lacking = "The data set was not available when this page was written: it has no picture and no prompt.";
  parts.push(all.prompt === undefined ? element("p", lacking) : element("p", all.prompt, { class: "text" }));
  content.replaceChildren(...parts);
  part("sample").scrollTop = 0;
}

function step(by) {
  const next = order[order.indexOf(shown) + by];
  if (next !== undefined) open(next);
}

function closed() {
  const index = order.indexOf(shown);
  shown = null;
  part("content").replaceChildren();
  if (index < 0) return;
  grid.paginationGoToPage(Math.floor(index / grid.paginationGetPageSize()));
  grid.ensureIndexVisible(index);
  grid.setFocusedCell(index, "id");
}

function choices(id, options, all) {
  part(id).replaceChildren(new Option(all, ""), ...options.map(([text, value]) => new Option(text, value)));
}

// The address says what is filtered, so that it can be linked to. `row` is the key of one row under one condition.
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  part("fault").textContent = "";
  const key = given.get("row");
  if (key !== null) {
    const place = conditions.findIndex((one) => one.rows.some((row) => row.key === key));
    if (place < 0) {
      part("fault").textContent =
        `This page has no row ${key}: it was written at another time than the page with the link. The command below writes it again.`;
    } else {
      given.set("condition", String(place));
      given.set("method", conditions[place].rows.find((row) => row.key === key).name);
    }
  }
  for (const id of FILTERS) {
    const control = part(id);
    const value = given.get(id) ?? "";
    control.value = value;
    if (control.value !== value) {
      control.value = "";
      part("fault").textContent ||= `This page has no ${id} ${value}.`;
    }
  }
  filter();
}

function writeAddress() {
  const given = new URLSearchParams();
  for (const id of FILTERS) if (part(id).value !== "") given.set(id, part(id).value);
  written = String(given);
  part("fault").textContent = "";
  location.replace(`#${written}`);
  filter();
}

async function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setScheme = () => (document.body.dataset.agThemeMode = dark.matches ? "dark" : "light");
  dark.addEventListener("change", setScheme);
  setScheme();
  await readConditions();
  const unique = (values) => [...new Set(values)].map((text) => [text, text]);
  choices("condition", conditions.map((one, place) => [one.name, place]), "all");
  choices("method", unique(conditions.flatMap((one) => one.rows.map((row) => row.name))), "all");
  const named = conditions.flatMap((one) => one.names.flatMap((names) => names.split(",")));
  choices("category", unique(named.filter(Boolean).sort()), "all");
  readAddress();
  makeGrid();
  let timer = null;
  part("filters").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(writeAddress, 150);
  });
  part("filters").addEventListener("reset", () => setTimeout(writeAddress));
  part("filters").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => location.hash.slice(1) === written || readAddress());
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("close").addEventListener("click", () => part("sample").close());
  part("sample").addEventListener("close", closed);
  part("sample").addEventListener("click", (event) => event.target === part("sample") && part("sample").close());
  part("sample").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}

start().catch((error) => (part("fault").textContent = error.message));
