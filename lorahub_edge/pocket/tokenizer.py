"""The pocket base's tokenizer: one token per word, made from the grammar's own words.

A token carries its leading space ("▁cat"), marks of punctuation carry none, so decoding gives back every text of the
grammar exactly. Any other word is unknown. The end of sequence is appended as T5 does.
"""

import json
from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lorahub_edge.pocket import formats, heldout, lexicon, skills, upstream

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
MARKS = "[.,:?]"


def reading_rules() -> tuple[normalizers.Sequence, pre_tokenizers.Sequence]:
    """How text is cut into words: (normalizer, pre-tokenizer)."""
    # Runs of spaces count as one and ends are cut, so that text typed by hand is read like generated text.
    normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    # Words are split before they get their mark: transformers.js does not split where Metaspace is told to.
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always", split=False)]
    split_marks = pre_tokenizers.Split(Regex(MARKS), behavior="isolated")
    return normalizer, pre_tokenizers.Sequence([*words, split_marks])


def grammar_texts(sample_rows: int = 4000) -> list[str]:
    """Texts that together hold every word of the grammar: all tables, all wordings, and rows for the words between."""
    tables = (lexicon.NOUNS, lexicon.COLOURS, lexicon.PEOPLE, lexicon.FILLERS, *lexicon.ANIMAL_FACTS.values())
    texts = [" ".join(table) for table in tables]
    texts += [" ".join(lexicon.OPPOSITE), " ".join((*lexicon.DAYS, *lexicon.MONTHS, *lexicon.LETTERS))]
    texts += [" ".join(map(str, range(lexicon.MAX_NUMBER + 2)))]
    texts += [text for skill in skills.SKILLS for text in skill.wordings]
    texts += [text for form in formats.FORMATS for text in form.wordings]
    texts += [f"{task.wording} {task.form_wording}" for task in heldout.BY_NAME.values()]
    for row in islice(upstream.base_rows(seed=0), sample_rows):
        texts += row.values()
    return texts


def make_tokenizer() -> Tokenizer:
    """The tokenizer with its vocabulary: pad 0, end 1, unknown 2, then the grammar's words in sorted order."""
    normalizer, pre_tokenizer = reading_rules()
    words: set[str] = set()
    for text in grammar_texts():
        words.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    vocabulary = {word: i for i, word in enumerate([PAD, END, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, 1)]
    )
    tokenizer.add_special_tokens([PAD, END, UNKNOWN])
    return tokenizer


def save_tokenizer(folder: Path) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer
