"The translator's model: properties over random shapes that a notebook page shows only for one."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from stage_modules.attention.scaled_dot_product import padding_mask
from stage_modules.attention.scores import masked_softmax
from stage_modules.seq2seq.attention import ATTENTIONS, Attention, BahdanauAttention, build_attention, register_attention
from stage_modules.seq2seq.data import make_batch
from stage_modules.seq2seq.model import BidirectionalLayer, LSTMEncoder, ModelConfig, Seq2Seq, build_model, reverse_padded, sequence_loss

fixed = settings(derandomize=True, deadline=None, max_examples=25)
lengths_of = st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(lambda ls: max(ls) > 0)
KINDS = ["none", "bahdanau"]


def tiny(kind: str = "bahdanau", num_layers: int = 1, seed: int = 0, dropout: float = 0.) -> Seq2Seq:
    torch.manual_seed(seed)
    return build_model(ModelConfig(kind, 7, 6, 8, num_layers, dropout, source_vocab_size=30, target_vocab_size=25)).eval()


def pairs_of(lengths: list[int], seed: int = 0) -> list[tuple[list[int], list[int]]]:
    random = torch.Generator().manual_seed(seed)
    draw = lambda n, high: torch.randint(4, high, (n,), generator=random).tolist()
    return [(draw(n, 30), draw(max(1, 8 - n), 25)) for n in lengths]


@fixed
@given(lengths_of, st.integers(0, 3))
def test_reverse_within_length(lengths: list[int], seed: int) -> None:
    x = torch.randn(len(lengths), 7, 3, generator=torch.Generator().manual_seed(seed))
    turned = reverse_padded(x, torch.tensor(lengths))
    for row, out, n in zip(x, turned, lengths):
        assert torch.equal(out[:n], row[:n].flip(0)) and torch.equal(out[n:], row[n:])


@fixed
@given(lengths_of, st.sampled_from([1, 2, 3]))
def test_encoder_ignores_padding(lengths: list[int], num_layers: int) -> None:
    torch.manual_seed(0)
    encoder = LSTMEncoder(30, 6, 8, num_layers).eval()
    mask = padding_mask(torch.tensor(lengths), 9)
    source = torch.randint(4, 30, mask.shape) # rubbish, not filler, behind the end
    together = encoder(source, mask)
    for i, n in enumerate(lengths):
        assert together.states[i, n:].abs().sum() == 0
        if n == 0: assert together.summary[i].abs().sum() == 0; continue
        alone = encoder(source[i:i + 1, :n], mask[i:i + 1, :n])
        torch.testing.assert_close(together.states[i, :n], alone.states[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.summary[i], alone.summary[0], atol=1e-5, rtol=0)


def test_layer_agrees_with_packing_forwards_and_backwards() -> None:
    torch.manual_seed(0)
    ours, theirs = BidirectionalLayer(5, 6), nn.LSTM(5, 3, bidirectional=True, batch_first=True)
    for name, parameter in ours.forwards.named_parameters(): getattr(theirs, name).data.copy_(parameter.data)
    for name, parameter in ours.backwards.named_parameters(): getattr(theirs, f"{name}_reverse").data.copy_(parameter.data)
    lengths = torch.tensor([2, 6, 4, 1])
    weight = torch.randn(4, 6, 6) * padding_mask(lengths).unsqueeze(-1)
    gradients = []
    for run in ours, lambda x, n: nn.utils.rnn.pad_packed_sequence(
            theirs(nn.utils.rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[0], batch_first=True):
        x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (run(x, lengths)[0] * weight).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.backwards.weight_hh_l0.grad, theirs.weight_hh_l0_reverse.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_padding_never_changes_loss_or_gradient(kind: str, num_layers: int) -> None:
    model, pairs = tiny(kind, num_layers), pairs_of([7, 3, 5, 1])
    def gradients(batches):
        model.zero_grad()
        loss = sum(model.loss(batch)[0] for batch in batches)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]
    together, alone = gradients([make_batch(pairs)]), gradients([make_batch([pair]) for pair in pairs])
    torch.testing.assert_close(together[0], alone[0], atol=1e-4, rtol=1e-5)
    for (name, _), a, b in zip(model.named_parameters(), together[1], alone[1]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda m: f"{name}: {m}")


def test_loss_counts_real_words_only() -> None:
    logits, targets = torch.randn(2, 3, 9), torch.tensor([[4, 5, 2], [6, 2, 0]])
    mask = targets != 0
    loss, count = sequence_loss(logits, targets, mask)
    assert count == 5
    changed = logits.clone(); changed[1, 2] = 100.
    assert torch.equal(sequence_loss(changed, targets, mask)[0], loss)
    by_hand = -sum(logits[b, t].log_softmax(-1)[targets[b, t]] for b, t in mask.nonzero().tolist())
    torch.testing.assert_close(loss, by_hand)
    smooth = sequence_loss(logits, targets, mask, label_smoothing=.1)[0]
    spread = -sum(logits[b, t].log_softmax(-1).mean() for b, t in mask.nonzero().tolist())
    torch.testing.assert_close(smooth, .9 * by_hand + .1 * spread)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_whole_sentence_equals_word_by_word(kind: str, num_layers: int) -> None:
    model, batch = tiny(kind, num_layers), make_batch(pairs_of([7, 3, 5, 1]))
    encoded = model.encoder(batch.source, batch.source_mask)
    features, weights = model.decoder(batch.target_in, encoded, need_weights=True)
    state = model.decoder.start(encoded)
    for t, token in enumerate(batch.target_in.unbind(1)):
        feature, weight, state = model.decoder.step(token, state)
        torch.testing.assert_close(feature, features[:, t], atol=1e-5, rtol=0)
        if kind != "none": torch.testing.assert_close(weight, weights[:, t], atol=1e-5, rtol=0)


@fixed
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(KINDS), st.integers(0, 5))
def test_translation_does_not_depend_on_its_batch(lengths: list[int], kind: str, seed: int) -> None:
    model, pairs = tiny(kind, seed=seed), pairs_of(lengths, seed)
    with torch.no_grad(): model.decoder.output.weight.mul_(5) # decided enough that a rounding error decides nothing
    batch = make_batch(pairs)
    together, weights = model.greedy(batch.source, batch.source_mask, need_weights=True)
    for i, pair in enumerate(pairs):
        one = make_batch([pair])
        assert model.greedy(one.source, one.source_mask)[0][0] == together[i]
        assert len(together[i]) <= 2 * (len(pair[0]) + 1) + 10
        assert weights[i].shape[1] == len(pair[0]) + 1 and 0 <= weights[i].shape[0] - len(together[i]) <= 1
        assert not {model.pad_id, model.bos_id, model.eos_id} & set(together[i])


def test_greedy_stops_when_all_have_ended_and_leaves_the_mode_alone() -> None:
    model, batch = tiny(dropout=.5), make_batch(pairs_of([7, 3]))
    steps, step = [], model.decoder.step
    model.decoder.step = lambda *args: steps.append(1) or step(*args)
    with torch.no_grad(): model.decoder.output.bias[model.eos_id] = 100.
    model.train()
    assert model.greedy(batch.source, batch.source_mask)[0] == [[], []] and len(steps) == 1 and model.training
    with torch.no_grad(): model.decoder.output.bias[model.eos_id] = -100.
    assert [len(ids) for ids in model.greedy(batch.source, batch.source_mask)[0]] == [2 * 8 + 10, 2 * 4 + 10]
    assert [len(ids) for ids in model.greedy(batch.source, batch.source_mask, max_length=3)[0]] == [3, 3]


def test_a_sentence_without_words_gives_no_nan() -> None:
    model = tiny()
    mask = padding_mask(torch.tensor([4, 0]))
    source, target = torch.randint(4, 30, (2, 4)), torch.randint(4, 25, (2, 3))
    model(source, mask, target).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@fixed
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 3))
def test_bahdanau_call_equals_start_and_step(batch: int, length: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention = BahdanauAttention(5, 6, 4)
    query, keys, values = torch.randn(batch, 5), torch.randn(batch, length, 6), torch.randn(batch, length, 3)
    mask = torch.rand(batch, length) > .4
    context, weights = attention(query, keys, values, mask)
    again = attention.step(query, attention.start(keys, values, mask))
    torch.testing.assert_close(context, again[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(weights, again[1], atol=1e-6, rtol=0)
    assert (weights[~mask] == 0).all() and not weights.isnan().any()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())


def test_bahdanau_gradients_with_an_empty_row() -> None:
    torch.manual_seed(0)
    attention = BahdanauAttention(3, 2, 4).double()
    query, keys = torch.randn(3, 3, dtype=torch.double, requires_grad=True), torch.randn(3, 4, 2, dtype=torch.double, requires_grad=True)
    mask = padding_mask(torch.tensor([4, 2, 0]))
    assert torch.autograd.gradcheck(lambda q, k: attention(q, k, k, mask), (query, keys))
    assert torch.autograd.gradcheck(lambda q, k: attention.step(q, attention.start(k, k, mask))[:2], (query, keys))


class Uniform(nn.Module):
    "Has the plain call and nothing else."
    def __init__(self, query_dim: int, key_dim: int, attention_dim: int): super().__init__()
    def forward(self, query, keys, values, mask=None):
        weights = masked_softmax(torch.zeros(keys.shape[:2]), mask)
        return (weights.unsqueeze(1) @ values).squeeze(1), weights


def test_a_module_with_the_plain_call_plugs_into_the_decoder_by_name() -> None:
    register_attention("uniform_for_test")(Uniform)
    try:
        model, batch = tiny("uniform_for_test"), make_batch(pairs_of([4, 2]))
        assert isinstance(model.decoder.attention, Attention)
        loss, count = model.loss(batch)
        loss.backward()
        _, weights = model.greedy(batch.source, batch.source_mask, need_weights=True)
        torch.testing.assert_close(weights[1], torch.full_like(weights[1], 1 / 3))
    finally: del ATTENTIONS["uniform_for_test"]
    with pytest.raises(ValueError, match="known: none, bahdanau"): build_attention("uniform_for_test", 1, 1, 1)


def test_free_running_reads_its_own_words() -> None:
    model, batch = tiny(), make_batch(pairs_of([4, 2, 6]))
    written = model.greedy(batch.source, batch.source_mask, batch.target_in.shape[1])[0]
    seen, step = [], model.decoder.step
    model.decoder.step = lambda token, state: seen.append(token) or step(token, state)
    model.loss(batch, forced=False)
    assert len(seen) == batch.target_in.shape[1] and (seen[0] == model.bos_id).all()
    rows = [[int(t[i]) for t in seen[1:]] for i in range(3)]
    for row, ids in zip(rows, written): assert row[:len(ids)] == ids[:len(row)] or {model.pad_id, model.bos_id} & set(row[:len(ids)])
    torch.testing.assert_close(model.loss(batch, forced=True)[1], model.loss(batch, forced=False)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_trains(kind: str) -> None:
    model, batch = tiny(kind, 2), make_batch(pairs_of([4, 2, 6]))
    with torch.autocast("cpu", torch.bfloat16): loss, count = model.loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and abs(loss / model.loss(batch)[0] - 1) < .05
