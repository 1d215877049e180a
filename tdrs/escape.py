"""Escape names and texts from data for Markdown, LaTeX and matplotlib. The HTML template escapes for itself."""

import re

from matplotlib.mathtext import MathTextParser

_MARKDOWN = re.compile(  # an interval such as [+1.0, +2.0] is no link, and p < .001 no tag
    r"[\\`*|~$]|\[(?![-+−.\d])|\](?=[(\[:])|<(?=[\w/!?])|&(?=[#\w])|(?<!\S)#|(?<![^\W_])_|_(?![^\W_])"
)
_STARTS = re.compile(  # a list, a rule or a heading's line, a quotation, a link's target
    r"^(\d{1,9}(?=[.)](?: |$))|(?=[-+](?: |$)|[-=:][-=: ]*$|[>[]))(.)"
)
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%_#$"}, "<": "$<$", ">": "$>$", "|": r"\textbar{}",
    '"': r"\textquotedblright{}", "`": r"\textasciigrave{}", "×": r"$\times$", "−": "$-$", "·": r"$\cdot$",
    "±": r"$\pm$", "→": r"$\to$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$", "…": r"\dots{}",
    "–": r"\textendash{}", "—": r"\textemdash{}",
    "“": "``", "”": "''", "‘": "`", "’": "'", "°": r"\textdegree{}", "µ": r"$\mu$",
}  # fmt: skip
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        (
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi "
            "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
        ).split(),
        strict=True,
    )
)


def one_line(text: str) -> str:
    """A text in one line: line breaks, tabs and invisible characters become blanks, several blanks become one."""
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    """A text with a blank for each invisible character."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def markdown(text: str) -> str:
    """A text escaped for Markdown: for a paragraph, a heading, a list or a table's cell."""
    return _STARTS.sub(r"\1\\\2", _MARKDOWN.sub(lambda found: "\\" + found[0], one_line(text)))


def code(text: str) -> str:
    """A name in Markdown's backticks; as escaped text if it has other characters than names have."""
    return f"`{text}`" if re.fullmatch(r"[\w.=, :/-]+", text) else markdown(text)


def fenced(text: str, kind: str = "") -> str:
    """A block of code in Markdown; the text may contain backticks."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{kind}\n{text.rstrip()}\n{fence}"


def latex(text: str) -> str:
    """A text escaped for a table's cell in LaTeX. Letters that are not Latin or Greek stay as they are."""
    letters = [_LATEX.get(letter) or _greek(letter) for letter in one_line(text)]
    if letters and letters[0] in ("[", "*"):  # `\\` at the end of the row before would take it for its own
        letters[0] = f"{{{letters[0]}}}"
    return re.sub("-(?=-)", "-{}", "".join(letters))


def _greek(letter: str) -> str:
    return f"$\\{_GREEK[letter]}$" if letter in _GREEK else letter


def pdflatex_lacks(text: str) -> str:
    """The characters of LaTeX's source that pdfLaTeX does not know."""
    return "".join(dict.fromkeys(letter for letter in text if ord(letter) > 0x17F))


def label(text: str, most: int = 60) -> str:
    """A text escaped for matplotlib, also for its legends. The middle of a text longer than `most` is left out."""
    text = one_line(text)
    if len(text) > most:
        text = f"{text[: most * 2 // 3]}…{text[-(most // 3) :]}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out labels that begin with it


def formula(text: str) -> str:
    """A text with formulas between `$`; escaped if matplotlib cannot read the formulas."""
    try:
        MathTextParser("agg").parse(text)
    except ValueError:
        return label(text)
    return text
