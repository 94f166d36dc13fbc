"Reading, splitting, tokenising and batching pairs: what a page cannot show, and what must hold for any input."
import json
import pickle
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_modules.seq2seq.data import (
    BOS,
    EOS,
    PAD,
    SPECIALS,
    UNK,
    BPETokenizer,
    BucketedBatches,
    Vocab,
    WordTokenizer,
    build_tokenizers,
    cut_text,
    encode_pairs,
    group_sources,
    join_tokens,
    load_tokenizer,
    make_batch,
    normalise,
    padding_share,
    read_pairs,
    save_tokenizer,
    split_pairs,
    tokenizer_from_json,
)
from stage_modules.seq2seq.grammar import make_pairs
from stage_modules.toolkit.errors import DataError

PAIRS = [pair[:2] for pair in make_pairs(1500, seed=3)]
steady = settings(derandomize=True, deadline=None, max_examples=80)


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------ reading

@pytest.mark.parametrize("content", [
    "Go.\tVa !\nI see.\tJe vois.\n", "\ufeffGo.\tVa !\r\nI see.\tJe vois.\r\n", "Go.\tVa !\rI see.\tJe vois.", "  Go. \t  Va ! \tCC-BY\tmore\n\n \nI see.\tJe vois.",
    "Go. ||| Va !\nI see.|||Je vois.", '[["Go.", "Va !"], ["I see.", "Je vois.", "extra"]]', '[\n{"target": "Va !", "source": "Go."},\n{"source": "I see.", "target": "Je vois."}\n]',
])
def test_every_way_of_writing_pairs_down_reads_the_same(tmp_path, content):
    expected = [("Go.", "Va !"), ("I see.", "Je vois.")]
    assert read_pairs(file(tmp_path, "pairs.txt", content)) == expected
    zipped = tmp_path / "pairs.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("fra.txt", content)
        archive.writestr("_about.txt", "not data")
    assert read_pairs(zipped) == expected


def test_json_lines(tmp_path):
    assert read_pairs(file(tmp_path, "p.jsonl", '["Go.", "Va !"]\n{"source": "I see.", "target": "Je vois."}\n')) == [("Go.", "Va !"), ("I see.", "Je vois.")]
    with pytest.raises(DataError, match=r"p.jsonl:2: "): read_pairs(file(tmp_path, "p.jsonl", '["Go.", "Va !"]\n{"source"\n'))


def test_brackets_in_the_first_sentence_are_not_json(tmp_path):
    assert read_pairs(file(tmp_path, "p.tsv", "[laughs]\t[rires]\n")) == [("[laughs]", "[rires]")]


@pytest.mark.parametrize("name, content, line, words", [
    ("empty.tsv", "", None, "empty"), ("blank.tsv", " \n\n", None, "empty"),
    ("binary.tsv", b"Go.\tVa !\n\x00\x01\x02", 2, "binary"), ("wide.tsv", "Go.\tVa !".encode("utf-16"), 1, "UTF-16"),
    ("latin.tsv", b"Go.\tVa !\nI see.\tVoil\xe0\n", 2, "not UTF-8"),
    ("column.tsv", "Go.\nI see.\n", None, "one column"), ("line.tsv", "Go.\tVa !\n\nI see. Je vois.\n", 3, "no tab"),
    ("half.tsv", "Go.\tVa !\nI see.\t \n", 2, "target is empty"), ("half.txt", "||| Va !\n", 1, "source is empty"),
    ("cut.json", '[["Go.", "Va !"],\n ["I see.", "Je', 2, "broken JSON"), ("open.json", '[["Go.", "Va !"]\n', 2, "broken JSON"),
    ("shape.json", '[["Go.", "Va !"],\n\n ["I see."]]', 3, "was expected"), ("type.json", '[["Go.", 3]]', 1, "not a sentence"),
    ("object.json", '{"Go.": "Va !"}', 1, "JSON list"), ("none.json", "[]", None, "no pair"), ("broken.zip", b"PK\x03\x04 not really", None, "not a zip archive"),
])
def test_each_fault_has_its_own_message_with_file_and_line(tmp_path, name, content, line, words):
    path = file(tmp_path, name, content)
    with pytest.raises(DataError) as caught: read_pairs(path)
    assert words in caught.value.message
    assert str(caught.value).startswith(f"{path}:{line}: " if line else str(path))
    assert caught.value.line == line


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"): read_pairs(tmp_path / "nowhere.tsv")
    with pytest.raises(DataError, match="a folder"): read_pairs(tmp_path)


def test_bad_lines_are_skipped_and_counted_only_on_request(tmp_path):
    path = file(tmp_path, "p.tsv", b"Go.\tVa !\nbad\nI see.\tVoil\xe0\nNo.\tNon.\n\t\n")
    pairs = read_pairs(path, skip_bad_lines=True)
    assert pairs == [("Go.", "Va !"), ("No.", "Non.")]
    assert pairs.skipped == 2 and ["line 2" in pairs.problems[0], "line 3" in pairs.problems[1]] == [True, True]
    path = file(tmp_path, "p.json", '[["Go.", "Va !"], ["only"], 7]')
    assert read_pairs(path, skip_bad_lines=True).skipped == 2


@steady
@given(st.binary(max_size=300))
def test_any_bytes_give_pairs_or_a_data_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in "f.tsv", "f.json", "f.jsonl", "f.zip":
        for skip in False, True:
            try: pairs = read_pairs(file(folder, name, data), skip_bad_lines=skip)
            except DataError: continue
            assert pairs and all(s.strip() and t.strip() for s, t in pairs)


def test_brackets_without_end(tmp_path):
    for name in "deep.json", "deep.jsonl":
        with pytest.raises(DataError): read_pairs(file(tmp_path, name, "[" * 100_000))


@steady
@given(st.text(max_size=300, alphabet=st.sampled_from('[]{},:" \n\t|abé\\0')))
def test_any_text_gives_pairs_or_a_data_error(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in "f.txt", "f.json", "f.jsonl":
        try: read_pairs(file(folder, name, text))
        except DataError as e: assert name in str(e)


# ------------------------------------------------------------------ splitting

def test_no_source_is_in_two_parts_whatever_its_case_and_spacing():
    variants = [(v, str(i)) for i, (s, _) in enumerate(PAIRS[:200]) for v in (s, s.upper(), s.lower().replace(" ", "  "), s.rstrip(".?!") + " !")]
    letters = lambda text: "".join(c for c in text.lower() if c.isalnum())  # not `sentence_key`: the test must not ask the code that it tests
    parts = [{letters(s) for s, _ in part} for part in split_pairs(variants, valid=20, test=40, seed=1)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert [len(part) for part in parts[1:]] == [20, 40]


def test_a_split_loses_nothing_and_depends_on_the_seed_alone():
    split = split_pairs(PAIRS, 0.1, 0.1, seed=5)
    assert sorted(pair for part in split for pair in part) == sorted(PAIRS)
    assert sorted(split_pairs(PAIRS[::-1], 0.1, 0.1, seed=5).test) == sorted(split.test)
    assert sorted(split_pairs(PAIRS, 0.1, 0.1, seed=6).test) != sorted(split.test)
    assert split_pairs(PAIRS, 0, 0).train == PAIRS


# ------------------------------------------------------------------ tokenizers

some_text = st.text(max_size=60) | st.text(max_size=60, alphabet="aelAé'’-\"?!.,«»()1 0$%\u202f\u00a0n't▁‿_")


@steady
@given(some_text)
def test_words_come_back_exactly(text):
    assert join_tokens(cut_text(text)) == normalise(text)
    assert normalise(normalise(text)) == normalise(text)
    tokenizer = WordTokenizer.train([text])
    assert tokenizer.decode(tokenizer.encode(text)) == normalise(text)
    assert UNK not in tokenizer.encode(text)


BPE = BPETokenizer.train([side for pair in PAIRS for side in pair], vocab_size=900)


@steady
@given(some_text)
def test_pieces_come_back_exactly_even_of_text_never_seen(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == normalise(text)
    assert BPE.decode([BOS, *ids, EOS, PAD, PAD]) == normalise(text)
    assert not ids or min(ids) >= len(SPECIALS)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_tokenizers_are_the_same_every_time_and_survive_json_and_pickle(tmp_path, kind):
    one, again = (build_tokenizers(PAIRS, kind)[1] for _ in range(2))
    assert one.to_json() == again.to_json()
    save_tokenizer(one, tmp_path / "t.json")
    for copy in load_tokenizer(tmp_path / "t.json", size=len(one), side="target"), pickle.loads(pickle.dumps(one)):
        for _, target in PAIRS[::50]: assert copy.encode(target) == one.encode(target)
        assert copy.decode(copy.encode(PAIRS[0][1])) == PAIRS[0][1]
    assert [one.id_tokens([i])[0] for i in range(4)] == list(SPECIALS)


def test_vocabularies_do_not_depend_on_the_hash_seed():
    code = "from stage_modules.seq2seq.data import *; from stage_modules.seq2seq.grammar import make_pairs; import json, hashlib;" \
           "t = [build_tokenizers([p[:2] for p in make_pairs(300)], k)[1].to_json() for k in ('word', 'bpe')]; print(hashlib.md5(json.dumps(t).encode()).hexdigest())"
    runs = {subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout for seed in ("1", "2")}
    assert len(runs) == 1


def test_lower_case_is_a_choice():
    word, piece = (build_tokenizers([("Go HOME.", "VA.")], kind, min_freq=1, lowercase=True)[0] for kind in ("word", "bpe"))
    for tokenizer in word, piece: assert tokenizer_from_json(tokenizer.to_json()).decode(tokenizer.encode("GO home.")) == "go home."


def test_special_names_in_a_text_are_text():
    for tokenizer in build_tokenizers([("a <eos> <pad> b", "c")] * 3, "word")[0], BPE:
        assert EOS not in tokenizer.encode("a <eos> <pad> b") and tokenizer.decode(tokenizer.encode("a <eos> <pad> b")) == "a <eos> <pad> b"


@pytest.mark.parametrize("content, words", [
    ('["<pad>", "<bos>"]', "none of ours"), ('{"kind": "word"}', "list of tokens"), ('{"kind": "char", "tokens": []}', "none of ours"),
    ('{"kind": "word", "tokens": ["[PAD]", "[UNK]", "a", "b"]}', "another program"), ('{"kind": "word", "tokens": ["<pad>", "<bos>", "<eos>", "<unk>", "a", "a"]}', "twice"),
    ('{"kind": "bpe", "model": {"version": "1.0"}}', "can be read"), ('{"kind": "bpe"}', "can be read"), ('{"kind": "word", "tokens"', "broken JSON"),
])
def test_a_vocabulary_that_does_not_fit_says_why(tmp_path, content, words):
    path = file(tmp_path, "vocab.json", content)
    with pytest.raises(DataError, match=words) as caught: load_tokenizer(path, side="target")
    assert str(caught.value).startswith(str(path))


def test_a_vocabulary_of_another_size_names_side_and_both_sizes(tmp_path):
    save_tokenizer(BPE, tmp_path / "v.json")
    with pytest.raises(DataError, match="the source vocabulary has 900 tokens and the model 1,204"): load_tokenizer(tmp_path / "v.json", size=1204, side="source")


def test_a_small_corpus_gives_a_small_vocabulary():
    source, target = build_tokenizers(PAIRS[:30], "bpe")
    assert 260 < len(source) < 600 and 260 < len(target) < 600
    assert UNK not in source.encode("Zürich \U0001f600")


def test_a_long_line_is_cut_and_counted():
    source, target = build_tokenizers(PAIRS, "word")
    with pytest.warns(UserWarning, match="1 of 11 pairs were cut to 50 tokens"):
        ids = encode_pairs([*PAIRS[:10], ("word " * 5000, "mot " * 5000)], source, target, max_length=50)
    assert max(len(side) for pair in ids for side in pair) == 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_pairs(PAIRS[:10], source, target, max_length=50)


# ------------------------------------------------------------------ batches

numbers = st.lists(st.tuples(st.lists(st.integers(4, 99), max_size=12), st.lists(st.integers(4, 99), max_size=12)), min_size=1, max_size=60)


@steady
@given(numbers, st.integers(1, 9), st.sampled_from([None, 8, 40]), st.booleans())
def test_every_pair_is_in_one_batch_and_comes_out_as_it_went_in(pairs, size, max_tokens, shuffle):
    batches, seen = BucketedBatches(pairs, size, seed=1, max_tokens=max_tokens, shuffle=shuffle), []
    for epoch in 0, 1:
        batches.set_epoch(epoch)
        for batch in batches:
            assert len(batch) <= size
            if max_tokens and len(batch) > 1: assert max(batch.source.numel(), batch.target_in.numel()) <= max_tokens
            for row, at in enumerate(batch.index.tolist()):
                source, target = pairs[at]
                assert batch.source[row][batch.source_mask[row]].tolist() == [*source, EOS]
                assert batch.target_in[row][batch.target_mask[row]].tolist() == [BOS, *target]
                assert batch.target_out[row][batch.target_mask[row]].tolist() == [*target, EOS]
            for tokens, mask in (batch.source, batch.source_mask), (batch.target_in, batch.target_mask), (batch.target_out, batch.target_mask):
                assert (tokens[~mask] == PAD).all() and mask[:, 0].all()
                assert mask.any(0).all(), "a column of nothing but padding"
        seen.append(sorted(at for batch in batches for at in batch.index.tolist()))
        assert len(list(batches)) == len(batches)
    assert seen == [list(range(len(pairs)))] * 2


def test_order_comes_from_seed_and_epoch_alone():
    ids = encode_pairs(PAIRS, *build_tokenizers(PAIRS, "word"))
    def order(seed, epoch, warm_up=0):
        torch.manual_seed(warm_up)
        batches = BucketedBatches(ids, 32, seed=seed)
        for e in range(warm_up): batches.set_epoch(e); next(iter(batches))
        batches.set_epoch(epoch)
        return [b.index.tolist() for b in batches]
    assert order(0, 3) == order(0, 3, warm_up=2)
    assert len({json.dumps(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4
    contents = [{frozenset(b) for b in order(0, e)} for e in (0, 1)]
    assert len(contents[0] & contents[1]) < len(contents[0]) / 2, "other sentences should meet in another epoch"


def test_a_sorted_batch_has_little_padding():
    ids = encode_pairs(PAIRS, *build_tokenizers(PAIRS, "word"))
    assert padding_share(BucketedBatches(ids, 64)) < padding_share(BucketedBatches(ids, 64, buckets=False)) / 2


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_each_batch_and_take_the_same_number_of_steps(world):
    ids = encode_pairs(PAIRS[:131], *build_tokenizers(PAIRS, "word"))
    whole = BucketedBatches(ids, 8, seed=4)
    parts = [list(whole.shard(rank, world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts):
        counted = [at for share in shares for at, row in zip(share.index.tolist(), share.target_mask) if row.any()]
        assert sorted(counted) == sorted(batch.index.tolist())
        assert sum(int(share.target_mask.sum()) for share in shares) == int(batch.target_mask.sum())


def test_bad_arguments():
    with pytest.raises(DataError, match="no pairs"): BucketedBatches([], 8)
    with pytest.raises(ValueError, match="batch_size"): BucketedBatches([([4], [4])], None)
    with pytest.raises(ValueError, match="buckets"): BucketedBatches([([4], [4])], 8, max_tokens=9, buckets=False)
    with pytest.raises(ValueError, match="word"): build_tokenizers(PAIRS, "char")


def test_a_batch_moves_whole():
    batch = make_batch([([5], [6, 7])]).to("meta")
    assert {getattr(batch, name).device.type for name in batch.__dataclass_fields__} == {"meta"}


def test_vocab_order_and_limits(tmp_path):
    vocab = Vocab.build([list("bbaac"), list("cb")], max_size=6)
    assert vocab.tokens == [*SPECIALS, "b", "a"] and vocab["zzz"] == UNK
    vocab.save(tmp_path / "deep" / "v.json")
    assert Vocab.load(tmp_path / "deep" / "v.json").tokens == vocab.tokens
    assert group_sources([("A", "1"), ("a!", "2")]) == {"a": [0, 1]}
