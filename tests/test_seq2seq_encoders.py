"Every encoder with every attention: padding, training, writing, reloading; and what the Transformer's cache must never change."
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stage_modules.attention.scaled_dot_product import padding_mask
from stage_modules.seq2seq.data import build_tokenizers, encode_pairs, make_batch
from stage_modules.seq2seq.encoders import ConvEncoder, TransformerSourceEncoder, influence
from stage_modules.seq2seq.grammar import SIMPLE, make_pairs
from stage_modules.seq2seq.model import Encoded, ModelConfig, Seq2Seq, build_model, select_rows
from stage_modules.seq2seq.transformer import DecoderStack, TransformerDecoder
from stage_modules.seq2seq.translate import TOKENIZER_FILES, Translator
from stage_modules.toolkit.checkpoints import save_checkpoint

fixed = settings(derandomize=True, deadline=None, max_examples=20)
ENCODERS = ["lstm", "conv", "transformer"]
ATTENTIONS = {
    "none": {"attention_type": "none"},
    "bahdanau": {"attention_type": "bahdanau"},
    **{f"luong {method}": {"attention_type": "luong", "attention_method": method} for method in ("dot", "general", "concat")},
    "coverage": {"attention_type": "coverage"},
    "self": {"attention_type": "self"},
}
EVERY = list(product(ENCODERS, ATTENTIONS))
PAIRS = [(p.source, p.target) for p in make_pairs(48, seed=3, constructions=SIMPLE)]
TOKENIZERS = build_tokenizers(PAIRS, "word", min_freq=1)


def config_of(encoder: str, attention: str, **changes) -> ModelConfig:
    sizes = {"attention_dim": 12, "embedding_dim": 16, "hidden_size": 16, "num_layers": 2, "dropout": 0., "num_heads": 2}
    return ModelConfig(**{**sizes, "encoder_type": encoder, **ATTENTIONS[attention], "source_vocab_size": len(TOKENIZERS[0]),
                          "target_vocab_size": len(TOKENIZERS[1]), **changes})


def fresh(encoder: str, attention: str, **changes) -> Seq2Seq:
    torch.manual_seed(0)
    return build_model(config_of(encoder, attention, **changes)).eval()


def near(a: Tensor, b: Tensor, eps: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=eps, rtol=0)


def fit(model: Seq2Seq, steps: int = 10) -> list[float]:
    "A few steps on one batch; the loss per word of each."
    batch, losses = make_batch(encode_pairs(PAIRS[:24], *TOKENIZERS)), []
    optimizer = torch.optim.Adam(model.train().parameters(), 2e-2)
    for _ in range(steps):
        loss, count = model.loss(batch)
        optimizer.zero_grad(); (loss / count).backward(); optimizer.step()
        losses.append((loss / count).item())
    model.eval()
    return losses


@pytest.mark.parametrize("encoder, attention", EVERY)
def test_trains_writes_and_reloads(encoder: str, attention: str, tmp_path: Path) -> None:
    config = config_of(encoder, attention)
    torch.manual_seed(0)
    model = build_model(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = fit(model)
    assert losses[-1] < .8 * losses[0], losses
    idle = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not idle, f"no gradient reaches {idle}"
    sources = [source for source, _ in PAIRS[:6]]
    with torch.no_grad(): model.decoder.output.bias[model.eos_id] = -100. # else a model as young as this one writes nothing
    wrote = Translator(model, *TOKENIZERS).translate_with_attention(sources, max_length=12)
    assert all(len(t.target_tokens) == 12 for t in wrote)
    for t in wrote: assert (t.weights is None) == (attention == "none") and (t.weights is None or t.weights.shape[1] == len(t.source_tokens))
    save_checkpoint(tmp_path / "model", model, asdict(config), {file: t.to_json() for file, t in zip(TOKENIZER_FILES.values(), TOKENIZERS)})
    again = Translator.load(tmp_path / "model").translate_with_attention(sources, max_length=12)
    assert [t.text for t in again] == [t.text for t in wrote]
    for a, b in zip(again, wrote): assert a.weights is None or torch.equal(a.weights, b.weights)


@pytest.mark.parametrize("encoder, attention", EVERY)
def test_padding_and_company_change_nothing(encoder: str, attention: str) -> None:
    model = fresh(encoder, attention)
    pairs = sorted(encode_pairs(PAIRS, *TOKENIZERS), key=lambda p: len(p[0]))
    pairs = [pairs[0], pairs[-1], pairs[20]]
    together = make_batch(pairs)
    filler = ~together.source_mask
    together.source[filler] = torch.randint(4, 9, (int(filler.sum()),)) # rubbish, not filler
    features, weights = model.decoder(together.target_in, model.encoder(together.source, together.source_mask), need_weights=True)
    written = model.greedy(together.source, together.source_mask, max_length=8)[0]
    for i, pair in enumerate(pairs):
        one = make_batch([pair])
        (T, S), encoded = (one.target_in.shape[1], one.source.shape[1]), model.encoder(one.source, one.source_mask)
        alone, looked = model.decoder(one.target_in, encoded, need_weights=True)
        near(features[i, :T], alone[0])
        if looked is not None: near(weights[i, :T, :S], looked[0]); near(weights[i, :T, S:].sum(), torch.tensor(0.))
        assert model.greedy(one.source, one.source_mask, max_length=8)[0][0] == written[i]


@pytest.mark.parametrize("encoder, attention", EVERY)
def test_word_by_word_is_all_at_once_and_rows_can_be_picked(encoder: str, attention: str) -> None:
    model, batch = fresh(encoder, attention), make_batch(encode_pairs(PAIRS[:3], *TOKENIZERS))
    encoded = model.encoder(batch.source, batch.source_mask)
    features, weights = model.decoder(batch.target_in, encoded, need_weights=True)
    order, state = torch.arange(3), model.decoder.start(encoded)
    for t in range(batch.target_in.shape[1]):
        if t in (1, 3): # a search drops a sentence, doubles another
            state = select_rows(state, pick := torch.tensor([2, 0, 0]))
            order = order[pick]
        feature, weight, state = model.decoder.step(batch.target_in[order, t], state)
        near(feature, features[order, t])
        assert (weight is None) == (weights is None) == (attention == "none")
        if weight is not None: near(weight, weights[order, t])


@pytest.mark.parametrize("encoder, attention", EVERY)
def test_a_sentence_without_words_gives_no_nan(encoder: str, attention: str) -> None:
    model = fresh(encoder, attention)
    mask = padding_mask([4, 0])
    encoded = model.encoder(torch.randint(4, 9, (2, 4)), mask)
    features, weights = model.decoder(torch.randint(4, 9, (2, 3)), encoded, need_weights=True)
    model.decoder.output(features).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert encoded.states[1].abs().sum() == encoded.summary[1].abs().sum() == 0
    if weights is not None: assert weights[1].abs().sum() == 0 and weights.isfinite().all()


@pytest.mark.parametrize("encoder, attention", [("conv", "self"), ("transformer", "self"), ("transformer", "bahdanau")])
def test_tied_embeddings_train_and_reload(encoder: str, attention: str, tmp_path: Path) -> None:
    config = config_of(encoder, attention, tied_embeddings=True, embedding_dim=12)
    torch.manual_seed(0)
    model = build_model(config)
    assert model.decoder.output.weight is model.decoder.embedding.weight
    losses = fit(model)
    assert losses[0] < 2 * torch.tensor(float(len(TOKENIZERS[1]))).log() and losses[-1] < .8 * losses[0]
    save_checkpoint(tmp_path / "model", model, asdict(config), {file: t.to_json() for file, t in zip(TOKENIZER_FILES.values(), TOKENIZERS)})
    again = Translator.load(tmp_path / "model").model
    assert again.decoder.output.weight is again.decoder.embedding.weight
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@fixed
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any), st.sampled_from(["conv", "transformer"]), st.integers(1, 3), st.sampled_from([8, 12]))
def test_encoders_ignore_padding(lengths: list[int], kind: str, num_layers: int, embedding_dim: int) -> None:
    torch.manual_seed(0)
    encoder = {"conv": ConvEncoder, "transformer": TransformerSourceEncoder}[kind](30, embedding_dim, 12, num_layers).eval()
    mask = padding_mask(lengths, 9)
    source = torch.randint(4, 30, mask.shape)
    together = encoder(source, mask)
    for i, n in enumerate(lengths):
        assert together.states[i, n:].abs().sum() == 0
        if n == 0: assert together.summary[i].abs().sum() == 0; continue
        alone = encoder(source[i:i + 1, :n], mask[i:i + 1, :n])
        near(together.states[i, :n], alone.states[0])
        near(together.summary[i], alone.summary[0])


@pytest.mark.parametrize("num_layers, kernel_size", [(1, 3), (3, 3), (2, 5), (4, 1)])
def test_a_convolution_sees_so_far_and_no_further(num_layers: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(30, 8, 16, num_layers, kernel_size=kernel_size).eval()
    reach = num_layers * (kernel_size - 1) // 2
    distance = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    assert torch.equal(influence(encoder, torch.randint(4, 29, (12,)), other=29) > 1e-5, distance <= reach)


@fixed
@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 3))
def test_a_stack_does_not_care_how_words_are_cut(batch: int, source: int, cuts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    stack = DecoderStack(2, 8, 2).eval()
    memory, mask = torch.randn(batch, source, 8), torch.rand(batch, source) > .3
    words = torch.randn(batch, sum(cuts), 8)
    whole, state, looked = stack(words, stack.start(memory, mask), watch=2)
    parts, kept = [], stack.start(memory, mask)
    for part in words.split(cuts, dim=1):
        out, kept, _ = stack(part, kept)
        parts.append(out)
    near(torch.cat(parts, 1), whole)
    for a, b in zip(kept.layers, state.layers): near(a.keys, b.keys); near(a.values, b.values)
    for layer in looked:
        assert (layer.own.triu(1) == 0).all()
        near(layer.source.sum(-1), mask.any(-1).float()[:, None, None].expand(layer.source.shape[:3]))


def test_a_stack_agrees_with_torch_and_so_do_its_gradients() -> None:
    torch.manual_seed(0)
    ours = DecoderStack(2, 12, 3, 20)
    theirs = nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 3, 20, dropout=0., norm_first=True, batch_first=True), 2, norm=nn.LayerNorm(12))
    theirs.load_state_dict(ours.state_dict())
    words, memory, mask = torch.randn(3, 5, 12), torch.randn(3, 4, 12), padding_mask([4, 1, 2])
    weight = torch.randn(3, 5, 12)
    out = ours(words, ours.start(memory, mask))[0]
    expected = theirs(words, memory, tgt_mask=torch.ones(5, 5).triu(1).bool(), memory_key_padding_mask=~mask)
    near(out, expected)
    for run in out, expected: (run * weight).sum().backward()
    theirs_by_name = dict(theirs.named_parameters())
    for name, p in ours.named_parameters(): near(p.grad, theirs_by_name[name].grad, 1e-4)


@pytest.mark.parametrize("position", [0, 2, 5])
def test_a_later_word_changes_no_earlier_feature(position: int) -> None:
    torch.manual_seed(0)
    decoder = TransformerDecoder(40, 10, 16, 12, num_layers=3).eval()
    mask = padding_mask([5, 2])
    encoded = Encoded(torch.randn(2, 5, 12) * mask.unsqueeze(-1), mask, torch.randn(2, 12))
    words = torch.randint(4, 39, (2, 6))
    changed = words.clone(); changed[:, position] = 39
    moved = (decoder(words, encoded)[0] - decoder(changed, encoded)[0]).abs().amax(-1) # (2, 6)
    assert (moved[:, :position] == 0).all() and (moved[:, position:] > 1e-4).all()


def test_look_holds_what_the_decoder_says() -> None:
    model, batch = fresh("transformer", "self", num_layers=3), make_batch(encode_pairs(PAIRS[:3], *TOKENIZERS))
    encoded = model.encoder(batch.source, batch.source_mask)
    maps, (B, T), S = model.decoder.look(batch.target_in, encoded), batch.target_in.shape, batch.source.shape[1]
    assert [m.shape for m in maps["source"]] == [(B, 2, T, S)] * 3 and [m.shape for m in maps["self"]] == [(B, 2, T, T)] * 3
    near(maps["source"][-1].mean(1), model.decoder(batch.target_in, encoded, need_weights=True)[1])
    assert not any(m.requires_grad for kind in maps.values() for m in kind)


@pytest.mark.parametrize("encoder, attention", [("transformer", "bahdanau"), ("lstm", "self")])
def test_heads_that_do_not_fit_are_named(encoder: str, attention: str) -> None:
    with pytest.raises(ValueError, match="num_heads 3 does not divide hidden_size 16"): fresh(encoder, attention, num_heads=3)


@pytest.mark.parametrize("encoder", ["conv", "transformer"])
def test_bf16_autocast_trains(encoder: str) -> None:
    model, batch = fresh(encoder, "self"), make_batch(encode_pairs(PAIRS[:3], *TOKENIZERS))
    with torch.autocast("cpu", torch.bfloat16): loss, _ = model.loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and abs(loss / model.loss(batch)[0] - 1) < .05
