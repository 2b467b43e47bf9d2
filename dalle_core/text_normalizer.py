"""What published models do to a prompt before their tokenizer sees it. A model was trained on texts in this form."""

import html
import re
from html.parser import HTMLParser
from urllib.parse import unquote_plus

from dalle_core.errors import published


def min_dalle(text: str) -> str:
    """min-dalle's: emoji by name, lower case, ASCII alone."""
    text = published("emoji").demojize(text, delimiters=("", ""))
    return text.lower().encode("ascii", errors="ignore").decode()


def dalle_mini(text: str) -> str:
    """dalle-mini's TextNormalizer, in its order. A hashtag stays one word: splitting it takes a 34 MB list of words."""
    emoji, unidecode = published("emoji"), published("unidecode").unidecode
    text = published("ftfy").fix_text(text)
    text = html.unescape(html.unescape(text))
    text = unidecode(emoji.demojize(text)).lower()
    # A training set's mark for a name. Of three words for one person the original takes one at random; this is its likeliest.
    text = re.sub(r"<person>([,\s]*(and)*[,\s]*<person>)+", " people ", text).replace("<person>", " a person ")
    text = re.sub(r"\A\s*\[\d+\]", "", text)  # references of wikis
    text = re.sub(r"\[\d+\]\s*\Z", "", text)
    text = re.sub(r"<[^<]+?>", " ", text)
    text = re.sub(r"http\S+", "", text)
    for _ in range(2):
        text = re.sub(r"(\d),(\d{3})", r"\1\2", text)
    # Dots, quotes and slashes that stay are marked, what is left of them becomes commas.
    text = re.sub(r"(\w)\.(\w)", r"\1xtokxdotxtokx\2", text)
    text = re.sub(r"'(?=([stdm]|(ll)|(re)|(ve)|(ll))\b)", "xtokxquotextokx", text)
    text = re.sub(r"(\d)/(\d)", r"\1xtokxslashxtokx\2", text)
    text = re.sub(r"(\w)-(\w)", r"\1 \2", text)
    text = re.sub(r"([%&\/$*])", r" \1 ", text)
    text = re.sub(r"#(\w+)", r"\1", text)
    text = re.sub(r"[_#\\]", " ", text)
    text = re.sub(r"""['"`]""", ' " ', text)
    text = re.sub(r"[()[\].,|:;?!=+~\-\/{}]", ",", text)
    text = text.replace("xtokxdotxtokx", ".").replace("xtokxquotextokx", "'").replace("xtokxslashxtokx", "/")
    text = re.sub(r"(\D)(\1{3,})", r"\1", text)
    text = re.sub(r'(\s*"+\s*)+', ' " ', text)
    text = re.sub(r"(\s*,+\s*)+", ", ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = text.removesuffix(",").removeprefix(",").strip()
    return f" {text}"


# What LlamaGen's T5Embedder replaces, in its order: before tags are taken out, after, and after ftfy.
SITE = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
ADDRESSES = (
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{SITE})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{SITE})", ""),
)
SIGNS = (
    (r"@[\w\d]+\b", ""),
    ("[\u31c0-\u9fff]+", ""),  # Chinese, for the most part
    (
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.(?:{FILES})", ""),  # no second try within a word: it takes time with its length squared
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
CODES = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


class _Text(HTMLParser):
    """The text between tags."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def handle_data(self, data):
        self.parts.append(data)

    def of(self, text: str) -> str:
        self.feed(text)
        self.close()
        return "".join(self.parts)


def _replaced(text: str, replacements: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in replacements:
        text = re.sub(pattern, new, text)
    return text


def llamagen(text: str) -> str:
    """LlamaGen's, which is DeepFloyd IF's: lower case without addresses, tags, codes and Chinese. It does all of it twice.

    What is left of broken tags and of unknown &names; may differ, as tags are taken out by the standard library's parser alone.
    """
    for _ in range(2):
        text = _replaced(unquote_plus(text).strip().lower(), ADDRESSES)
        text = _replaced(_Text().of(text), SIGNS)
        if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
            text = re.sub("[-_]", " ", text)
        text = html.unescape(html.unescape(published("ftfy").fix_text(text))).strip()
        text = _replaced(text, CODES).strip()
    return text


NORMALIZERS = {"min-dalle": min_dalle, "dalle-mini": dalle_mini, "llamagen": llamagen}
