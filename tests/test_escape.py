"""What data and names say is shown as it is, in each format."""

import io
import string

import matplotlib

matplotlib.use("Agg")
import pytest
from markdown_it import MarkdownIt
from matplotlib import pyplot as plt

from tdrs import escape

NAMES = [
    "+ SD", "- x", "1. first", "2) second", "# head", "a #", "a|b", "a\\|b", "**bold**", "_x_", "a_b", "`code`", "``",
    "<b>x</b>", "<!-- x", "[a](b)", "![a](b)", "&amp;", "~~x~~", "$x$", r"$\foo{$", "a\nb", "> quote", "---", "===",
    "|---|", "http://x.y", "é中λ", "a\\", "\\", "{x}", "a^b", "'\"", "    code", "* x", ":---",
    "[1](b)", "[+1.0, +2.0]", "[^1]", "[x]: y", "[ ] task", "p < .001", "a # b", "x]", "&#35;",
    "x  \ny", "\\*",
]  # fmt: skip


def shown(source: str) -> list[str]:
    """The texts of a Markdown source's inline parts; anything but plain text fails."""
    found = []
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(source):
        if token.type == "inline":
            kinds = {child.type for child in token.children or []}
            assert kinds <= {"text", "text_special"}, (source, kinds)
            found.append("".join(child.content for child in token.children or []))
        assert token.type not in ("html_block", "fence", "code_block", "hr"), source
    return found


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    source, line = escape.markdown(name), escape.one_line(name)
    assert shown(f"# {source}") == [line]
    assert shown(source) == [line]
    assert shown(f"- {source}: better") == [f"{line}: better"]
    assert shown(f"| a | b |\n|---|---|\n| {source} | {source} |") == ["a", "b", line, line]


def test_a_fence_is_longer_than_what_it_has() -> None:
    text = "a\n```\nb ````\n"
    (token,) = MarkdownIt().parse(escape.fenced(text, "yaml"))
    assert (token.type, token.info, token.content) == ("fence", "yaml", text)


def test_latex_leaves_no_special_character() -> None:
    for letter in '&%_#${}~^\\<>|"`':
        found = escape.latex(f"a{letter}b")
        assert found != f"a{letter}b"
    assert escape.latex("a_b & 50 % ~^\\{}#$") == (
        r"a\_b \& 50 \% \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\#\$"
    )
    assert escape.latex('<"a">|`') == r"$<$\textquotedblright{}a\textquotedblright{}$>$\textbar{}\textasciigrave{}"
    assert escape.latex("[x] *") == "{[}x] *"  # `\\` before it would take it for its argument
    assert escape.latex("* x") == "{*} x"
    assert escape.latex("a--b\nc\td") == "a-{}-b c d"
    assert escape.latex("λ × é −1") == r"$\lambda$ $\times$ é $-$1"
    plain = string.ascii_letters + string.digits + " .,:;!?()/+-=@'"
    assert escape.latex(plain) == plain
    assert escape.pdflatex_lacks(escape.latex("é λ 中文中")) == "中文"


@pytest.mark.parametrize("name", [*NAMES, "x" * 300, "_hidden", "$", "$$", "\\$", "a $b", "$a$ and $b"])
def test_matplotlib_shows_a_name_as_it_is(name: str) -> None:
    """In titles, ticks and legends; it reads formulas between dollars, and hides labels that begin with `_`."""
    canvas, axis = plt.subplots()
    text = axis.set_title(escape.label(name))
    parsed, math = text._preprocess_math(text.get_text())
    assert not math
    line = escape.one_line(name)
    assert parsed.strip() == line if len(line) <= 60 else "…" in parsed
    axis.plot([0], [0], label=escape.label(name))
    assert len(axis.get_legend_handles_labels()[1]) == 1
    plt.close(canvas)


def test_a_formula_that_cannot_be_read_is_a_text() -> None:
    assert escape.formula("$w_{min}$ (×)") == "$w_{min}$ (×)"
    assert escape.formula(r"$\foo{$") == r"\$\foo{\$"
    canvas, axis = plt.subplots()
    axis.set_title(escape.formula(r"$\foo{$"))
    canvas.savefig(io.BytesIO())
    plt.close(canvas)
