"The grammar's French and English held against rules written down here a second time, and its alignments against the tokenizer."
import re
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from stage_modules.seq2seq.data import bare, cut_text, read_pairs, sentence_key
from stage_modules.seq2seq.grammar import (
    ALL_ADJECTIVES,
    ALL_NOUNS,
    CONSTRUCTIONS,
    BilingualGrammar,
    make_pairs,
    make_sample,
    read_aligned,
    write_pairs,
)
from stage_modules.toolkit.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
PAIRS = make_pairs(6000, seed=11)
VOWEL = "[aeiouyhàâéèêëîïôûœ]"
NOT_ELIDED = r"(?!hibou|oui|onze|huit|yaourt)"


def found(pattern, side="target", flags=re.IGNORECASE):
    "The sentences in which a pattern is found, to be shown when there should be none."
    return [getattr(p, side) for p in PAIRS if re.search(pattern, getattr(p, side), flags)][:5]


# ------------------------------------------------------------------ French

@pytest.mark.parametrize("pattern", [
    rf"(?<![-\w])(je|me|te|se|ne|de|que|le) {NOT_ELIDED}(?!y\w){VOWEL}", rf"(?<![-\w])la {NOT_ELIDED}{VOWEL}(?!as\b)",  # elision is never left out
    r"\b(à|de) les? (?!\w+(er|ir|re|oir)\b)", r"\bsi ils?\b", r"\bs'(?!ils?\b|\w)", r"\bs'elles?\b",
    r"['][bcdfgjklmnpqrstvwxzç]", r"\b[ldnjmt]'hibou", r"(?<![-\w])(ce|cette vieux) [aeiouéèêœ]", r"\b(un|le|mon|ton|son|ce) (beau|nouveau|vieux) (?!hibou)[aeiouhéèêœ]",
    r"(?<![-\w])(ma|ta|sa|cette) (homme|enfant|élève|oncle|ami|oiseau|arbre)\b", rf"(?<![-\w])(ma|ta|sa) {NOT_ELIDED}[aeiouéèêœ]",
    r"  ", r" [.,]", r"[^ ][?!]", r"\bplus bon", r"\b(\w+) \1\b(?<!vous vous)(?<!nous nous)",
    r"\bquels? (?=\w+ée\b)", r"-(a|e)-", r"[ae]-(il|elle)", r"\bsont a\b",
])
def test_what_french_never_says(pattern):
    assert found(pattern) == []


def test_the_patterns_above_find_what_they_are_for():
    wrong = {r"le homme": rf"(?<![-\w])(je|me|te|se|ne|de|que|le) {NOT_ELIDED}(?!y\w){VOWEL}", "la école": rf"(?<![-\w])la {NOT_ELIDED}{VOWEL}(?!as\b)",
             "ma amie": rf"(?<![-\w])(ma|ta|sa) {NOT_ELIDED}[aeiouéèêœ]", "de les chats": r"\b(à|de) les? (?!\w+(er|ir|re|oir)\b)", "va-il": r"[ae]-(il|elle)"}
    for text, pattern in wrong.items(): assert re.search(pattern, text, re.IGNORECASE), (text, pattern)


GENDER = {form: n.gender for n in ALL_NOUNS for form in n.french[:1]}
NUMBER = {form: at for n in ALL_NOUNS for at, form in enumerate(n.french) if n.french[0] != n.french[1]}
ARTICLES = {"le": ("m", 0), "un": ("m", 0), "du": ("m", 0), "au": ("m", 0), "ce": ("m", 0), "cet": ("m", 0), "mon": (None, 0), "la": ("f", 0), "une": ("f", 0), "cette": ("f", 0),
            "ma": ("f", 0), "ta": ("f", 0), "sa": ("f", 0), "les": (None, 1), "des": (None, 1), "aux": (None, 1), "ces": (None, 1), "mes": (None, 1), "ses": (None, 1), "nos": (None, 1),
            "vos": (None, 1), "leurs": (None, 1), "votre": (None, 0), "notre": (None, 0), "quel": ("m", 0), "quelle": ("f", 0), "quels": ("m", 1), "quelles": ("f", 1)}


def test_articles_agree_with_the_noun_behind_them():
    checked = 0
    for pair in PAIRS:
        words = [bare(t).lower() for t in cut_text(pair.target)]
        for article, noun in pairwise(words):
            if article in ARTICLES and noun in (NUMBER.keys() | GENDER.keys()) - {"ferme", "porte", "montre", "lit", "dessin"}:
                gender, number = ARTICLES[article]
                if noun in NUMBER: assert number == NUMBER[noun], (article, noun, pair.target)
                if gender and noun in GENDER: assert gender == GENDER[noun], (article, noun, pair.target)
                checked += 1
    assert checked > 3000


def test_adjectives_agree_with_the_noun_beside_them():
    "Every form of an adjective next to a noun has the noun's gender and number, by a table made here from the spelling."
    forms = defaultdict(set)
    for a in ALL_ADJECTIVES:
        for key, form in a.french.items(): forms[form].add(key)
    for short in "bel", "vieil", "nouvel": forms[short] = {("m", False)}
    nouns = defaultdict(set)
    for n in ALL_NOUNS:
        for plural in False, True: nouns[n.french[plural]].add((n.gender, plural))
    before = {f for a in ALL_ADJECTIVES if a.place == "before" for f in a.french.values()} | {"bel", "vieil", "nouvel"}
    checked = 0
    for pair in PAIRS:
        words = [bare(t) for t in cut_text(pair.target)]
        for left, right in pairwise(words):
            noun, adjective = (right, left) if left in before else (left, right)
            if noun in nouns and adjective in forms and noun not in ("orange", "rose"):
                assert nouns[noun] & forms[adjective], (left, right, pair.target)
                assert (adjective in before) == (adjective == left), (left, right, pair.target)
                checked += 1
    assert checked > 1000


def test_subjects_and_verbs_agree():
    endings = {"nous": r"(ons|sommes)$", "vous": r"(ez|êtes|dites)$", "ils": r"nt$", "elles": r"nt$", "tu": r"[sx]$"}
    checked = 0
    for pair in PAIRS:
        words = [bare(t).lower() for t in cut_text(pair.target)]
        for at, pronoun in enumerate(words[:-1]):
            if pronoun not in endings or (at and words[at - 1] in ("ne", "n'", "nous", "vous", "-le", "-la", "-les", "s'", "il", "je", "elle", "on", "que") and pronoun in ("nous", "vous")): continue
            rest = [w for w in words[at + 1:] if w not in ("ne", "n'", "me", "m'", "te", "t'", "se", "s'", "nous", "vous", "le", "la", "l'", "les", "lui", "leur", "y")]
            if at and (words[at - 1] not in ("que", "qu'", "quand", "si", "et", "mais", ",", "s'")): continue  # an object, or not a subject for certain
            if rest: assert re.search(endings[pronoun], rest[0]), (pronoun, rest[0], pair.target); checked += 1
    assert checked > 800


def test_denial_comes_in_two_parts():
    for pair in PAIRS:
        words = [bare(t).lower() for t in cut_text(pair.target)]
        no = sum(w in ("ne", "n'") for w in words)
        assert no <= sum(w in ("pas", "jamais", "plus") for w in words), pair.target
        english = sum(w.lower() in ("not", "n't", "cannot", "never", "no") for w in map(bare, cut_text(pair.source)))
        assert no == english, pair


BEFORE = "big|small|old|young|new|beautiful|pretty|good|bad|long"


def test_some_before_an_adjective_is_de_and_any_is_always_de():
    seen = 0
    for pair in PAIRS:
        if re.search(rf"\bsome ({BEFORE}) \w+s\b|\bany\b", pair.source):
            assert re.search(r"\b(de|d') ?\w", pair.target), pair
            seen += 1
        if re.match(r"^\w+ (does not|doesn't|did not|didn't) \w+ an? \w+\.$", pair.source): assert re.search(r" (de |d'|à une? )", pair.target), pair
    assert seen > 20


# ------------------------------------------------------------------ English

@pytest.mark.parametrize("pattern", [
    r"\ba [aeio]", r"\ban [^aeiou]", r"(^|that |because |, and |, but )(he|she|it) (do|have|are|go|see|want)\b", r"\b(I|we|they|you) (does|has|is|goes|wants)\b", r"\bamn't", r"\b(be|bes|beed)\b(?<!going to be)",
    r"\b(did|does|do)(n't| not)? \w+(ed|ing)\b(?<!need)(?<!feed)(?<!bring)(?<!sing)", r"  ", r" [.,?!]", r"\bmans\b|childs|mouses|knifes|wolfs|\bsheeps", r"\bthis (\w+[^s'])s\b(?<!serious)(?<!delicious)(?<!famous)(?<!jealous)(?<!dangerous)(?<!curious)(?<!bus)",
    r"\b(eated|goed|runned|seed|buyed|selled|writed|breaked|weared|finded|taked)\b",
])
def test_what_english_never_says(pattern):
    assert found(pattern, "source", re.IGNORECASE if "I|we" not in pattern else 0) == []


# ------------------------------------------------------------------ alignment

def test_every_token_has_a_partner_and_every_index_a_token():
    for pair in PAIRS:
        source, target = cut_text(pair.source), cut_text(pair.target)
        assert {i for i, _ in pair.alignment} == set(range(len(source))), pair
        assert {j for _, j in pair.alignment} == set(range(len(target))), pair
        assert pair.alignment == sorted(set(pair.alignment))


ALSO_SOMETHING_ELSE = {"watch", "play", "ring", "box", "orange", "drawing", "painting", "square", "phone", "photograph", "book", "plant", "park", "stone", "bed"}


def test_nouns_and_adjectives_are_tied_to_their_own_translation():
    "By the dictionary, not by the labels: a noun's partners hold the French noun."
    singular, checked = {n.english[0]: n for n in ALL_NOUNS if n.english[0] != n.english[1]}, 0
    for pair in PAIRS:
        source, target = ([bare(t) for t in cut_text(side)] for side in (pair.source, pair.target))
        for at, token in enumerate(source):
            noun = singular.get(token)
            if noun is None or token in ALSO_SOMETHING_ELSE: continue
            partners = {target[j].lower() for i, j in pair.alignment if i == at}
            if token in ("doctor", "teacher") or noun.french[0] in partners: checked += noun.french[0] in partners
            else: pytest.fail(f"{token} is tied to {partners} in {pair}")
    assert checked > 2500


def test_one_english_sentence_has_one_translation():
    "So that a model can be right: `you` is decided by who is addressed, `it` by what it stands for."
    grammar, known = BilingualGrammar(seed=5), {}
    for _ in range(15_000):
        pair = grammar.pair()
        assert known.setdefault(pair.source, pair.target) == pair.target


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_every_construction_has_much_to_say(name):
    assert len(make_pairs(200, seed=1, constructions=[name])) == 200


# ------------------------------------------------------------------ files

def test_the_sample_is_what_the_grammar_writes(tmp_path):
    make_sample(tmp_path)
    for name in "train", "valid", "test":
        kept = ROOT / "data" / "sample_translation" / f"{name}.tsv"
        assert (tmp_path / kept.name).read_bytes() == kept.read_bytes(), f"{kept.name}: run make_sample again after a change of the grammar"
        assert kept.stat().st_size < 1.5e6


def test_the_sample_shares_no_source_between_its_files():
    parts = [{sentence_key(source) for source, _ in read_pairs(ROOT / "data" / "sample_translation" / f"{name}.tsv")} for name in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [10_000, 500, 500]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_alignments_survive_a_file_and_a_bad_one_names_its_line(tmp_path):
    write_pairs(tmp_path / "p.tsv", PAIRS[:50])
    assert read_aligned(tmp_path / "p.tsv") == PAIRS[:50]
    (tmp_path / "bad.tsv").write_text("Go.\tVa !\t0-0\nGo.\tVa !\t0:0\n")
    with pytest.raises(DataError, match=r"bad.tsv:2: "): read_aligned(tmp_path / "bad.tsv")


def test_the_command_writes_the_same_file_in_another_process(tmp_path):
    run = [sys.executable, "-m", "stage_modules.seq2seq.grammar", "--n", "300", "--seed", "4", "--output", str(tmp_path / "p.tsv")]
    done = subprocess.run(run, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}, check=False)
    assert done.returncode == 0 and "300 pairs" in done.stdout, done.stderr
    assert read_aligned(tmp_path / "p.tsv") == make_pairs(300, seed=4)
    done = subprocess.run([*run, "--constructions", "poem"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no construction 'poem'" in done.stderr and "Traceback" not in done.stderr
