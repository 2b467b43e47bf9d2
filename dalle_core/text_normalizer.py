"""What published models do to a prompt before their tokenizer sees it. A model was trained on texts in this form."""

import html
import re

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


NORMALIZERS = {"min-dalle": min_dalle, "dalle-mini": dalle_mini}
