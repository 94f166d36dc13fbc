"Luong's attention, coverage and their decoders: every option, over random shapes, and back from a checkpoint."
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stage_modules.attention.scaled_dot_product import padding_mask
from stage_modules.seq2seq import luong
from stage_modules.seq2seq.attention import ATTENTIONS, BahdanauAttention, register_attention
from stage_modules.seq2seq.coverage import CoverageAttention, coverage_loss
from stage_modules.seq2seq.data import WordTokenizer, make_batch
from stage_modules.seq2seq.grammar import SIMPLE, make_pairs
from stage_modules.seq2seq.luong import LuongAttention, LuongStepDecoder
from stage_modules.seq2seq.model import ModelConfig, Seq2Seq, build_model, select_rows
from stage_modules.seq2seq.translate import TOKENIZER_FILES, Translator
from stage_modules.toolkit.checkpoints import save_checkpoint
from stage_modules.toolkit.errors import CheckpointError, ShapeError

fixed = settings(derandomize=True, deadline=None, max_examples=25)
lengths_of = st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(lambda ls: max(ls) > 0)
METHODS = ["dot", "general", "concat"]
OPTIONS = [{"attention_type": "bahdanau"}, {"attention_type": "coverage"}] + [
    {"attention_type": "luong", "attention_method": method, "input_feeding": fed, "local_window": window}
    for method in METHODS for fed in (False, True) for window in (0, 2)]
name = lambda options: "-".join(str(v) for v in options.values()) if isinstance(options, dict) else str(options)


def tiny(options: dict, num_layers: int = 1, **more) -> Seq2Seq:
    torch.manual_seed(0)
    config = ModelConfig(attention_dim=7, embedding_dim=6, hidden_size=8, num_layers=num_layers, dropout=0., source_vocab_size=30, target_vocab_size=25)
    return build_model(replace(config, **options, **more)).eval()


def pairs_of(lengths: list[int], seed: int = 0) -> list[tuple[list[int], list[int]]]:
    random = torch.Generator().manual_seed(seed)
    draw = lambda n, high: torch.randint(4, high, (n,), generator=random).tolist()
    return [(draw(n, 30), draw(max(1, 8 - n), 25)) for n in lengths]


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None: torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


# decoders

@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("num_layers, tied", [(1, False), (3, True)])
def test_whole_sentence_equals_word_by_word(options: dict, num_layers: int, tied: bool) -> None:
    model, batch = tiny(options, num_layers, tied_embeddings=tied), make_batch(pairs_of([7, 3, 5, 1]))
    encoded = model.encoder(batch.source, batch.source_mask)
    features, weights = model.decoder(batch.target_in, encoded, need_weights=True)
    bare, none = model.decoder(batch.target_in, encoded)
    assert none is None and model.decoder.looks
    close(bare, features)
    state = model.decoder.start(encoded)
    for t, token in enumerate(batch.target_in.unbind(1)):
        feature, weight, state = model.decoder.step(token, state)
        close(feature, features[:, t]); close(weight, weights[:, t])


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_padding_never_changes_loss_or_gradient(options: dict) -> None:
    model, pairs = tiny(options, 2), pairs_of([7, 3, 5, 1])
    def gradients(batches):
        model.zero_grad()
        loss = sum(model.loss(batch, penalty=coverage_loss)[0] for batch in batches)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]
    together, alone = gradients([make_batch(pairs)]), gradients([make_batch([pair]) for pair in pairs])
    torch.testing.assert_close(together[0], alone[0], atol=1e-4, rtol=1e-5)
    for (where, _), a, b in zip(model.named_parameters(), together[1], alone[1]):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=lambda m, where=where: f"{where}: {m}")


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_an_empty_sentence_in_the_batch_gives_zeros_and_no_nan(options: dict) -> None:
    model, batch = tiny(options), make_batch(pairs_of([4, 2]))
    mask = batch.source_mask.clone(); mask[1] = False
    features, weights = model.decoder(batch.target_in, model.encoder(batch.source, mask), need_weights=True)
    features.square().sum().backward()
    assert (weights[1] == 0).all() and torch.isfinite(features).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_rows_of_a_state_go_on_as_their_sentences_would(options: dict) -> None:
    model, batch = tiny(options, 2), make_batch(pairs_of([7, 3, 5]))
    decoder, index = model.decoder, torch.tensor([2, 0, 2, 1])
    state = decoder.start(model.encoder(batch.source, batch.source_mask))
    for token in batch.target_in[:, :2].unbind(1): _, _, state = decoder.step(token, state)
    picked = decoder.step(batch.target_in[index, 2], select_rows(state, index))
    whole = decoder.step(batch.target_in[:, 2], state)
    close(picked[0], whole[0][index]); close(picked[1], whole[1][index])


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_every_parameter_learns_and_dropout_is_off_in_evaluation(options: dict) -> None:
    model, batch = tiny(options, 2, dropout=.5), make_batch(pairs_of([7, 3, 5]))
    assert torch.equal(model.loss(batch)[0], model.loss(batch)[0])
    model.train()
    assert not torch.equal(model.loss(batch)[0], model.loss(batch)[0])
    model.loss(batch)[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_bf16_autocast_trains(options: dict) -> None:
    model, batch = tiny(options, 2), make_batch(pairs_of([4, 2, 6]))
    with torch.autocast("cpu", torch.bfloat16): loss, _ = model.loss(batch, penalty=coverage_loss)
    loss.backward()
    assert torch.isfinite(loss) and abs(loss / model.loss(batch, penalty=coverage_loss)[0] - 1) < .05


@pytest.mark.parametrize("method", METHODS)
def test_feeding_tells_the_state_where_it_looked(method: str) -> None:
    for fed in False, True:
        model, batch = tiny({"attention_type": "luong", "attention_method": method, "input_feeding": fed}), make_batch(pairs_of([4, 2]))
        encoded = model.encoder(batch.source, batch.source_mask)
        elsewhere = encoded._replace(states=encoded.states.flip(-1) + 1) # the same summary, other things to look at
        states = []
        for seen in encoded, elsewhere:
            state = model.decoder.start(seen)
            for token in batch.target_in[:, :2].unbind(1): _, _, state = model.decoder.step(token, state)
            states.append(state.hidden)
        assert torch.equal(*states) is not fed


# attentions

def by_hand(attention: LuongAttention, method: str, query: Tensor, keys: Tensor, length: int) -> list[float]:
    "Weights of one query over one sentence, number by number from the paper."
    score = attention.score
    def one(key: Tensor) -> float:
        if method == "dot": return float(sum(a * b for a, b in zip(query, key)))
        if method == "general": return float(query @ (score.key_projection.weight / math.sqrt(len(query))) @ key)
        hidden = torch.cat([score.query_projection.weight, score.key_projection.weight], 1) @ torch.cat([query, key])
        return float(sum(v * math.tanh(h) for v, h in zip(score.vector, hidden)))
    seen, bell = list(range(length)), [1.] * length
    if attention.window is not None:
        D, window = attention.window.half_width, attention.window
        place = length / (1 + math.exp(-float(window.place.weight[0] @ torch.tanh(window.query_projection.weight @ query))))
        seen = [j for j in seen if abs(j - place) <= D]
        bell = [math.exp(-(j - place)**2 / (2 * (D / 2)**2)) for j in range(length)]
    total = sum(math.exp(one(keys[j])) for j in seen)
    return [math.exp(one(keys[j])) / total * bell[j] if j in seen else 0. for j in range(length)]


@fixed
@given(lengths_of, st.sampled_from(METHODS), st.sampled_from([0, 1, 3]), st.integers(0, 2))
def test_luong_is_the_paper_s_formula(lengths: list[int], method: str, window: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention, B = LuongAttention(4, 4, 5, method, window).requires_grad_(False), len(lengths)
    for p in attention.parameters(): torch.nn.init.normal_(p)
    queries, keys, values, mask = torch.randn(B, 3, 4), torch.randn(B, 8, 4), torch.randn(B, 8, 6), padding_mask(lengths, 8)
    contexts, weights = attention.attend_all(queries, attention.start(keys, values, mask))
    for b, n in enumerate(lengths):
        assert (weights[b, :, n:] == 0).all()
        for t in range(3):
            expected = torch.tensor(by_hand(attention, method, queries[b, t], keys[b], n))
            close(weights[b, t, :n], expected, 1e-4)
            close(contexts[b, t], expected @ values[b, :n], 1e-4)


@fixed
@given(lengths_of, st.sampled_from(METHODS), st.sampled_from([0, 2]))
def test_call_step_and_all_at_once_agree_and_rubbish_stays_out(lengths: list[int], method: str, window: int) -> None:
    torch.manual_seed(1)
    attention, B, mask = LuongAttention(4, 4, 5, method, window), len(lengths), padding_mask(lengths, 8)
    queries, keys = torch.randn(B, 3, 4), torch.randn(B, 8, 4)
    contexts, weights = attention.attend_all(queries, attention.start(keys, keys, mask))
    rubbish = keys.masked_fill(~mask.unsqueeze(-1), 1e4)
    for t in range(3):
        for context, weight in (attention(queries[:, t], rubbish, rubbish, mask), attention.step(queries[:, t], attention.start(keys, keys, mask))[:2]):
            close(context, contexts[:, t]); close(weight, weights[:, t])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", [0, 2])
def test_gradients_with_an_empty_row(method: str, window: int) -> None:
    torch.manual_seed(0)
    attention = LuongAttention(3, 3, 4, method, window).double()
    queries, keys = (torch.randn(3, 4, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
    mask = padding_mask([4, 2, 0])
    assert torch.autograd.gradcheck(lambda q, k: attention.attend_all(q, attention.start(k, k, mask)), (queries, keys))
    assert torch.autograd.gradcheck(lambda q, k: attention(q[:, 0], k, k, mask), (queries, keys))


@pytest.mark.parametrize("method", METHODS)
def test_pieces_change_memory_and_nothing_else(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention, mask = LuongAttention(8, 8, 16, method), padding_mask([20, 11])
    queries, keys = torch.randn(2, 40, 8), torch.randn(2, 20, 8)
    def run(piece: int, kept: int) -> tuple[Tensor, Tensor, int]:
        monkeypatch.setattr(luong, "PIECE", piece); monkeypatch.setattr(luong, "KEPT", kept)
        leaf, held = keys.clone().requires_grad_(), {}
        def pack(x: Tensor) -> Tensor: held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(); return x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            contexts, none = attention.attend_all(queries, attention.start(leaf, leaf, mask), need_weights=False)
        assert none is None
        return contexts.detach(), torch.autograd.grad(contexts.square().sum(), leaf)[0], sum(held.values())
    whole = run(2**30, 2**30)
    for limits in (1, 2**30), (2**30, 1), (1, 1), (5 * 2 * 20 * attention.score.numbers, 1):
        parts = run(*limits)
        close(parts[0], whole[0]); close(parts[1], whole[1], 1e-4)
        if limits[1] == 1: assert parts[2] < whole[2] - 4 * 2 * 40 * 20 * attention.score.numbers, "what is computed again must not be kept"


@fixed
@given(lengths_of, st.integers(1, 5), st.integers(0, 3))
def test_coverage_is_the_sum_of_earlier_weights(lengths: list[int], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention, mask, B = CoverageAttention(3, 4, 5), padding_mask(lengths, 8), len(lengths)
    queries, keys, values = torch.randn(B, steps, 3), torch.randn(B, 8, 4), torch.randn(B, 8, 2)
    state, total = attention.start(keys, values, mask), torch.zeros(B, 8)
    for t in range(steps):
        context, weights, state = attention.step(queries[:, t], state)
        hidden = attention.query_projection(queries[:, t]).unsqueeze(1) + attention.key_projection(keys) + total.unsqueeze(-1) * attention.coverage_vector
        scores = (hidden.tanh() @ attention.vector).masked_fill(~mask, -torch.inf)
        expected = torch.where(mask.any(-1, keepdim=True), scores, 0.).softmax(-1) * mask
        close(weights, expected); close(context, (expected.unsqueeze(1) @ values).squeeze(1))
        if t == 0: close(attention(queries[:, 0], keys, values, mask)[1], weights)
        total = total + expected
        close(state.coverage, total)


def test_without_its_vector_coverage_is_bahdanau() -> None:
    torch.manual_seed(0)
    covered, plain = CoverageAttention(3, 4, 5), BahdanauAttention(3, 4, 5)
    torch.nn.init.zeros_(covered.coverage_vector)
    plain.load_state_dict({k: v for k, v in covered.state_dict().items() if k != "coverage_vector"})
    keys, mask = torch.randn(2, 6, 4), padding_mask([6, 3])
    a, b = covered.start(keys, keys, mask), plain.start(keys, keys, mask)
    for query in torch.randn(3, 2, 3):
        (_, one, a), (_, other, b) = covered.step(query, a), plain.step(query, b)
        close(one, other)


def test_gradients_through_coverage() -> None:
    torch.manual_seed(0)
    attention, mask = CoverageAttention(2, 3, 4).double(), padding_mask([3, 2, 0])
    for p in attention.parameters(): p.requires_grad_()
    def steps(queries: Tensor, keys: Tensor, *_) -> tuple[Tensor, ...]:
        state, outs = attention.start(keys, keys, mask), []
        for query in queries.unbind(1):
            context, weights, state = attention.step(query, state); outs += [context, weights]
        return *outs, coverage_loss(torch.stack(outs[1::2], 1), mask, torch.ones(3, 3, dtype=torch.bool))
    inputs = [torch.randn(3, 3, n, dtype=torch.double, requires_grad=True) for n in (2, 3)]
    assert torch.autograd.gradcheck(steps, (*inputs, attention.coverage_vector))


@fixed
@given(lengths_of, lengths_of, st.integers(0, 3))
def test_coverage_loss_is_the_double_sum(sources: list[int], targets: list[int], seed: int) -> None:
    B = min(len(sources), len(targets))
    torch.manual_seed(seed)
    weights = torch.rand(B, 8, 9)
    expected = 0.
    for b in range(B):
        for j in range(sources[b]):
            before = 0.
            for t in range(targets[b]):
                expected += min(weights[b, t, j].item(), before); before += weights[b, t, j].item()
    source_mask, target_mask = padding_mask(sources[:B], 9), padding_mask(targets[:B], 8)
    close(coverage_loss(weights, source_mask, target_mask), torch.tensor(expected), 1e-4)
    filler = ~(target_mask.unsqueeze(-1) & source_mask.unsqueeze(1))
    close(coverage_loss(weights.masked_fill(filler, math.nan), source_mask, target_mask), torch.tensor(expected), 1e-4)


# by name, and from a checkpoint

def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="known: dot, general, concat"): tiny({"attention_type": "luong", "attention_method": "cosine"})
    with pytest.raises(ValueError, match="local_window is -1"): tiny({"attention_type": "luong", "local_window": -1})
    with pytest.raises(ValueError, match="one size, got 4 and 6"): LuongAttention(4, 6, 5, "dot")
    with pytest.raises(ShapeError, match="keys"): LuongAttention(4, 6, 5).start(torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    with pytest.raises(ShapeError, match="queries"): (a := LuongAttention(4, 6, 5)).attend_all(torch.zeros(1, 2, 5), a.start(torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)))
    with pytest.raises(ShapeError, match="query"): CoverageAttention(4, 6, 5)(torch.zeros(1, 5), torch.zeros(1, 2, 6), torch.zeros(1, 2, 6))


def test_luong_s_attention_plugs_into_the_decoder_that_asks_before_its_step() -> None:
    register_attention("luong_for_test")(LuongAttention)
    try:
        model, batch = tiny({"attention_type": "luong_for_test"}), make_batch(pairs_of([4, 2]))
        assert not isinstance(model.decoder, LuongStepDecoder)
        model.loss(batch)[0].backward()
        assert model.decoder.attention.score.key_projection.weight.grad.abs().sum() > 0
    finally: del ATTENTIONS["luong_for_test"]


@pytest.mark.parametrize("kind", ["luong", "coverage"])
def test_a_name_imports_its_page_s_module(kind: str) -> None:
    code = f"""import sys
from stage_modules.seq2seq.model import ModelConfig, build_model
assert "stage_modules.seq2seq.{kind}" not in sys.modules
print(type(build_model(ModelConfig("{kind}", source_vocab_size=9, target_vocab_size=9)).decoder.attention).__name__)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, {"luong": "LuongAttention", "coverage": "CoverageAttention"}[kind]), done.stderr


@pytest.fixture(scope="module")
def tokenizers() -> tuple[WordTokenizer, WordTokenizer, list[str]]:
    pairs = make_pairs(60, seed=0, constructions=SIMPLE)
    return WordTokenizer.train([p.source for p in pairs]), WordTokenizer.train([p.target for p in pairs]), [p.source for p in pairs[:8]]


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_a_checkpoint_gives_the_same_translator_back(options: dict, tokenizers: tuple, tmp_path: Path) -> None:
    source, target, sentences = tokenizers
    torch.manual_seed(0)
    config = ModelConfig(attention_dim=7, embedding_dim=8, hidden_size=8, source_vocab_size=len(source), target_vocab_size=len(target), **options)
    model = build_model(config)
    for p in model.parameters(): torch.nn.init.normal_(p, std=.5)
    save_checkpoint(tmp_path / "a", model, asdict(config), {TOKENIZER_FILES["source"]: source.to_json(), TOKENIZER_FILES["target"]: target.to_json()})
    before, after = Translator(model, source, target), Translator.load(tmp_path / "a")
    for a, b in zip(before.translate_with_attention(sentences), after.translate_with_attention(sentences)):
        assert a.text == b.text and torch.equal(a.weights, b.weights)
    assert type(after.model.decoder) is type(model.decoder) and len(set(before.translate(sentences))) > 1


def test_a_checkpoint_of_another_method_is_refused(tokenizers: tuple, tmp_path: Path) -> None:
    source, target, _ = tokenizers
    config = ModelConfig("luong", 7, 8, 8, source_vocab_size=len(source), target_vocab_size=len(target))
    files = {TOKENIZER_FILES["source"]: source.to_json(), TOKENIZER_FILES["target"]: target.to_json()}
    for changed in {"attention_method": "concat"}, {"attention_method": "cosine"}, {"input_feeding": True}, {"local_window": 3}, {"attention_type": "coverage"}:
        save_checkpoint(tmp_path / "b", build_model(config), asdict(replace(config, **changed)), files)
        with pytest.raises(CheckpointError): Translator.load(tmp_path / "b")
