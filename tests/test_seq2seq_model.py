"The translator's model: properties over random shapes that a notebook page shows only for one."
import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.attention.scaled_dot_product import padding_mask
from stage_modules.attention.scores import masked_softmax
from stage_modules.seq2seq import model as model_page
from stage_modules.seq2seq.attention import ATTENTIONS, Attention, BahdanauAttention, build_attention, register_attention
from stage_modules.seq2seq.data import make_batch
from stage_modules.seq2seq.model import (
    BidirectionalLayer,
    Decoder,
    DecoderState,
    Encoded,
    LSTMEncoder,
    ModelConfig,
    ResidualLSTMs,
    Seq2Seq,
    build_model,
    find_decoder,
    find_encoder,
    initialise,
    register_decoder,
    register_encoder,
    reverse_padded,
    select_rows,
    sequence_loss,
)

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
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


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
        loss, _count = model.loss(batch)
        loss.backward()
        _, weights = model.greedy(batch.source, batch.source_mask, need_weights=True)
        torch.testing.assert_close(weights[1], torch.full_like(weights[1], 1 / 3))
    finally: del ATTENTIONS["uniform_for_test"]
    with pytest.raises(ValueError, match="known: none, bahdanau"): build_attention("uniform_for_test", 1, 1, 1)


def test_free_running_reads_its_own_words() -> None:
    model, batch = tiny(), make_batch(pairs_of([4, 2, 6]))
    with torch.no_grad(): model.decoder.output.bias[[model.pad_id, model.bos_id]] = -100. # which greedy search rules out and free running does not
    written = model.greedy(batch.source, batch.source_mask, batch.target_in.shape[1] - 1)[0]
    seen, step = [], model.decoder.step
    model.decoder.step = lambda token, state: seen.append(token) or step(token, state)
    model.loss(batch, forced=False)
    assert len(seen) == batch.target_in.shape[1] and (seen[0] == model.bos_id).all()
    read = torch.stack(seen[1:], 1).tolist()
    assert sum(map(len, written)) > 3
    for row, ids in zip(read, written): assert row[:len(ids)] == ids
    torch.testing.assert_close(model.loss(batch, forced=True)[1], model.loss(batch, forced=False)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_trains(kind: str) -> None:
    model, batch = tiny(kind, 2), make_batch(pairs_of([4, 2, 6]))
    with torch.autocast("cpu", torch.bfloat16): loss, _count = model.loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and abs(loss / model.loss(batch)[0] - 1) < .05


@fixed
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.sampled_from(KINDS), st.integers(1, 3))
def test_rows_of_a_state_are_the_states_of_those_sentences(index: list[int], kind: str, num_layers: int) -> None:
    model, rows = tiny(kind, num_layers), torch.tensor(index)
    batch = make_batch(pairs_of([7, 3, 5, 1]))
    state = model.decoder.start(model.encoder(batch.source, batch.source_mask))
    for token in batch.target_in.unbind(1)[:2]: _, _, state = model.decoder.step(token, state)
    picked = model.decoder.start(model.encoder(batch.source[rows], batch.source_mask[rows]))
    for token in batch.target_in[rows].unbind(1)[:2]: _, _, picked = model.decoder.step(token, picked)
    token = batch.target_in[rows, 2]
    for a, b in zip(model.decoder.step(token, select_rows(state, rows))[:2], model.decoder.step(token, picked)[:2]):
        if a is not None or b is not None: torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_rows_of_every_kind_of_container() -> None:
    x, index = torch.arange(6.).view(3, 2), torch.tensor([2, 0])
    state = DecoderState(x, [x, (None, x[:, 0])], Encoded(x, x > 2, x))
    picked = select_rows(state, index)
    assert isinstance(picked, DecoderState) and isinstance(picked.attention, Encoded) and isinstance(picked.cell, list) and picked.cell[1][0] is None
    for part in picked.hidden, picked.cell[0], picked.attention.states: assert torch.equal(part, x[[2, 0]])
    with pytest.raises(TypeError, match="not dict"): select_rows([{}], index)


@pytest.mark.parametrize("forced", [True, False])
def test_penalty_sees_weights_and_masks_and_reaches_the_gradient(forced: bool) -> None:
    model, batch = tiny(), make_batch(pairs_of([7, 3, 5, 1]))
    def entropy(weights, source_mask, target_mask):
        assert weights.shape == (*target_mask.shape, source_mask.shape[1])
        assert torch.equal(source_mask, batch.source_mask) and torch.equal(target_mask, batch.target_mask)
        return -(weights * weights.clamp(min=1e-9).log()).sum(-1)[target_mask].sum()
    plain, count = model.loss(batch, forced=forced)
    both, same = model.loss(batch, forced=forced, penalty=entropy)
    assert both - plain > 1 and count == same
    model.zero_grad(); (both - plain).backward()
    assert model.decoder.attention.vector.grad.abs().sum() > 1e-3
    with pytest.raises(ValueError, match="has none"): tiny("none").loss(batch, penalty=entropy)


def test_weights_are_kept_only_for_a_penalty() -> None:
    model, batch, asked = tiny(), make_batch(pairs_of([4, 2])), []
    forward = model.decoder.forward
    model.decoder.forward = lambda *args, need_weights=False: asked.append(need_weights) or forward(*args, need_weights=need_weights)
    model.loss(batch); model.loss(batch, penalty=lambda *args: torch.tensor(0.))
    assert asked == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_tied_embeddings_share_one_table_with_sensible_first_scores(kind: str) -> None:
    torch.manual_seed(0)
    config = {"attention_type": kind, "embedding_dim": 64, "hidden_size": 64, "attention_dim": 32, "dropout": 0., "source_vocab_size": 300, "target_vocab_size": 400}
    free, tied = build_model(ModelConfig(**config)), build_model(ModelConfig(**config, tied_embeddings=True))
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(free) - count(tied) == 64 * 400 and tied.decoder.output.weight is tied.decoder.embedding.weight
    words = tied.decoder.embedding(torch.arange(1, 400))
    assert .9 < words.std() < 1.1 and tied.decoder.embedding(torch.tensor(0)).abs().sum() == 0
    batch = make_batch(pairs_of([7, 3, 5, 1]))
    loss, words = tied.loss(batch)
    assert abs(loss / words - torch.tensor(400.).log()) < .5
    again = copy.deepcopy(tied)
    assert again.decoder.output.weight is again.decoder.embedding.weight
    again.load_state_dict(tied.state_dict())


def test_layers_that_are_not_named_keep_what_they_were_made_with() -> None:
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.convolution, self.linear, self.own = nn.LayerNorm(4), nn.Conv1d(4, 4, 3), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
            self.own.knows_its_start = True
    part = Part()
    before = {name: p.clone() for name, p in part.named_parameters()}
    initialise(part)
    changed = {name for name, p in part.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"linear.weight", "linear.bias"}


def test_encoders_and_decoders_by_name() -> None:
    class Mean(nn.Module):
        output_dim = 8
        def __init__(self): super().__init__(); self.embedding = nn.Embedding(30, 8)
        def forward(self, source, mask):
            states = self.embedding(source) * mask.unsqueeze(-1)
            return Encoded(states, mask, states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
    class Last(Decoder):
        looks = False
        def __init__(self, config): super().__init__(config.target_vocab_size, 8); self.output = nn.Linear(8, config.target_vocab_size)
        def start(self, encoded): return encoded.summary
        def step(self, token, state): return self.embed(token) + state, None, state
    register_encoder("mean_for_test")(lambda config: Mean())
    register_decoder("last_for_test")(lambda config, memory_dim: Last(config))
    try:
        config = {"source_vocab_size": 30, "target_vocab_size": 25, "hidden_size": 8, "embedding_dim": 6, "attention_dim": 5}
        for kind in "none", "bahdanau", "last_for_test":
            model, batch = build_model(ModelConfig(kind, encoder_type="mean_for_test", **config)), make_batch(pairs_of([7, 3]))
            model.loss(batch)[0].backward()
            assert len(model.greedy(batch.source, batch.source_mask)[0]) == 2
        with pytest.raises(ValueError, match="'mean_for_test' gives 8 features, hidden_size is 16"):
            build_model(ModelConfig(encoder_type="mean_for_test", **config | {"hidden_size": 16}))
    finally: del model_page.ENCODERS["mean_for_test"], model_page.DECODERS["last_for_test"]
    with pytest.raises(ValueError, match="known: lstm, conv, transformer"): find_encoder("mean_for_test")
    with pytest.raises(ValueError, match="known: none, bahdanau, luong, coverage, self"): find_decoder("last_for_test")


def test_the_model_s_module_loads_no_other_decoder() -> None:
    code = ("import sys, stage_modules.seq2seq.model; "
            "print([m for m in ('luong', 'coverage', 'transformer', 'encoders') if f'stage_modules.seq2seq.{m}' in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_fresh_weights_come_in_the_order_they_always_came() -> None:
    "Saved results were made with these draws: the attention's first of all, then part by part from the encoder to the output layer."
    found = {}
    for kind in KINDS:
        parameters = dict(tiny(kind).named_parameters())
        names = ["decoder.attention.vector"] * (kind == "bahdanau") + ["encoder.layers.0.backwards.weight_ih_l0", "decoder.output.weight"]
        found[kind] = [round(parameters[name].detach().double().sum().item(), 2) for name in names]
    assert found == {"none": [-2.96, 2.58], "bahdanau": [-0.7, -0.05, 2.54]}


def test_an_upper_layer_that_says_nothing_lets_its_input_through() -> None:
    upper = ResidualLSTMs(4, 2)
    for p in upper.parameters(): nn.init.zeros_(p) # such an LSTM gives zeros
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    state = DecoderState(torch.zeros(3, 3, 4), torch.zeros(3, 3, 4), None)
    assert torch.equal(upper(hidden, state, nn.Identity())[0], hidden)
