from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.request import Sampling
from dualpath.engine.sampling import sample, sample_batch, uniform

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.0])


def drawn(sampling: Sampling, count: int = 400) -> Counter[int]:
    return Counter(sample(LOGITS, sampling, position)[0] for position in range(count))


def test_greedy_takes_the_best_and_says_by_how_much() -> None:
    assert sample_batch(torch.stack([LOGITS, LOGITS.flip(0)]), [Sampling()] * 2, [0, 1]) == [(1, 1.0), (2, 1.0)]


def test_frequencies_follow_the_softmax() -> None:
    counts = drawn(Sampling(temperature=1.0, seed=1), 4000)
    for token, share in enumerate(torch.softmax(LOGITS, 0).tolist()):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(-(2**70), 2**70), position=st.integers(0, 2**40), temperature=st.floats(1e-6, 5))
def test_repeats_for_the_same_seed_and_position(seed: int, position: int, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=seed)
    alone = sample(LOGITS, sampling, position)
    beside = sample_batch(torch.stack([LOGITS.flip(0), LOGITS]), [Sampling(), sampling], [7, position])
    assert beside[1] == alone
    assert 0.0 <= uniform(seed, position) < 1.0


def test_seed_and_position_both_matter() -> None:
    assert len({uniform(seed, position) for seed in range(20) for position in range(20)}) == 400


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert set(drawn(Sampling(temperature=2.0, top_k=2))) == {1, 3}
    assert set(drawn(Sampling(temperature=1.0, top_p=0.8))) == {1, 3}  # 0.64, then 0.88
    assert set(drawn(Sampling(temperature=1.0, top_p=0.5))) == {1}
    assert set(drawn(Sampling(temperature=1.0, top_p=0.0))) == {1}
    assert set(drawn(Sampling(temperature=5.0, top_k=99))) == {0, 1, 2, 3}


def test_tiny_temperature_is_greedy() -> None:
    assert set(drawn(Sampling(temperature=1e-30), 20)) == {1}
