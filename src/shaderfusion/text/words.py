"""Words of a prompt that a model was taught, and where they are in a text."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["AddedWords", "same_word"]


class AddedWords:
    """Words that each stand for token ids of their own, however the tokenizer would split them.

    A word is found in any case, composed or decomposed (Unicode's NFC and NFD), and with any white space where it has
    some. It stands alone: where it begins or ends with a letter, a digit or an underscore, none of these may be next to
    it there. So `my_style` is found in "(My_Style:1.2)" and in "my_style's", but not in "my_styles" or "not_my_style",
    while `<cat-toy>` is found anywhere. Where two words begin at one place, the longer is found.
    """

    def __init__(self, ids: Mapping[str, Sequence[int]] | None = None) -> None:
        longest_first = sorted((ids or {}).items(), key=lambda item: -len(item[0]))
        self._ids = [ids for _, ids in longest_first]
        self._pattern = re.compile("|".join(_group(word) for word, _ in longest_first), re.IGNORECASE)

    def split(self, text: str) -> Iterator[tuple[int, str, Sequence[int]]]:
        """The pieces of a text in order: where each begins, what it is, and the ids of one that is a word."""
        end = 0
        for match in self._pattern.finditer(text) if self._ids else ():
            yield end, text[end : match.start()], ()
            yield match.start(), match[0], self._ids[(match.lastindex or 0) - 1]
            end = match.end()
        yield end, text[end:], ()


def same_word(word: str) -> str:
    """A text that two words share where a prompt cannot tell them apart."""
    return " ".join(unicodedata.normalize("NFC", word).split()).casefold()


def _group(word: str) -> str:
    """The pattern of one word, which has one group: the number of a match's group tells which word it is."""
    forms = {unicodedata.normalize(form, word).strip() for form in ("NFC", "NFD")}
    before = r"(?<!\w)" if re.match(r"\w", word.strip()) else ""
    after = r"(?!\w)" if re.search(r"\w$", word.strip()) else ""
    return before + "(" + "|".join(r"\s+".join(map(re.escape, form.split())) for form in sorted(forms)) + ")" + after
