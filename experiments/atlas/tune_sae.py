"""The second stage of Atlas's autoencoders: what is left out moves answers as little as possible.

In coordinates in which the answers' Fisher information is the identity (`behind.Frame`), on tokens
drawn and weighed by what hangs on them,

    loss = sum_t w_t e_t^T F e_t + own ||e_t||^2 + price * (features that fire)

Every feature has a threshold of its own: it rises where a code just above it is worth less than
the price of a feature that fires, and falls where it is worth more. The price holds the mean
number of features that fire. Codes are sparse, so that all but one product are sparse too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from behind import Frame, Pool
from safetensors.torch import load_file, save_file
from torch import Tensor

from conflictkit.interventions.sae import SAE

ROWS = 4096
"""Tokens of a step."""
RATE, LAST = 0.015, 0.02
"""A step is this share of a row's size at first, and this share of that in the end of a round."""
OWN = 0.02
"""What the share of the stream's variance that is left out counts."""
PULL = 1.0
"""How much of the price is also a smooth cost of a code's size, log(1 + z / threshold)."""
NEVER = 6e4
"""The threshold of a feature that is silent for good: half precision ends at 65,504."""
MOST = 10.0
"""A token pulls at most as much as so many: one that is far out must not lead all others astray."""
RIDGE = 0.1
"""Added to the spread of the tokens, one being the mean, where a feature begins to read."""
LOUD = 3.0
"""A feature that writes so many times a token, and the mean one, is wrong: it is begun anew."""
NEAR = 1.5
"""A code is just above its threshold up to so many times it."""
STEP = 0.03
"""Of a threshold's logarithm."""
SILENT, WOKEN, AWAKE, FEW = 200, 256, 0.75, 8
"""Steps after which a feature that did not fire is begun anew, how many at once, until which part
of a round, and at how many of a step's tokens it fires then."""


@dataclass
class State:
    """Everything that a step changes; features are rows."""

    encoder: Tensor
    """`[features, width + 1]`; the last column is the bias."""
    decoder: Tensor
    threshold: Tensor
    encoder_mean: Tensor
    decoder_mean: Tensor
    encoder_size: Tensor
    decoder_size: Tensor
    worth: Tensor
    paid: Tensor
    fired: Tensor
    """`[features]`: steps since it last fired."""
    numbers: Tensor
    """Steps done, the price, the mean number that fires."""

    @classmethod
    def of(cls, encoder: Tensor, decoder: Tensor, threshold: Tensor) -> State:
        """A beginning."""
        count = len(decoder)
        return cls(
            encoder, decoder, threshold, torch.zeros_like(encoder), torch.zeros_like(decoder),
            *(torch.zeros(count) for _ in range(5)), torch.zeros(3, dtype=torch.float64),
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write it beside the old one, and put it in its place."""
        held = {one.name: getattr(self, one.name).contiguous() for one in fields(self)}
        save_file(held, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read it."""
        return cls(**load_file(path))


class Tuner:
    """Steps over a pool of tokens."""

    def __init__(self, state: State, frame: Frame, pool: Pool, active: float) -> None:
        self.state, self.pool, self.active = state, pool, active
        self.forms = (frame.before, frame.answers)
        self.own = frame.own * OWN
        size = state.decoder.shape[1]
        # The value of a stream that is left out whole: 1 for both parts of the loss.
        everything = [pool.draw(8192, -1 - one) for one in range(4)]
        x, answer, weight, _ = (torch.cat(part) for part in zip(*everything, strict=True))
        whole = float((self._metric(x, answer) * x).sum(-1).mul(weight).mean())
        self.forms = (frame.before / whole, frame.answers / whole)
        self.spread = torch.linalg.inv(x.T @ x / len(x) + RIDGE * torch.eye(size))
        self.all = torch.empty(ROWS, len(state.decoder))
        self.on = torch.empty(ROWS, len(state.decoder), dtype=torch.bool)

        if not state.numbers[0]:
            self._open()

    def _open(self) -> None:
        """One threshold for all features, which lets as many fire as should."""
        y, _, _, cost = self.pool.draw(1024, -9)
        codes = torch.cat([y, torch.ones(len(y), 1)], 1) @ self.state.encoder.T
        most = min(256, codes.shape[1])
        best, order = codes.topk(most, dim=-1)
        best, order = best.flatten().sort(descending=True)
        paid = cost.repeat_interleave(most)[order].cumsum(0) / cost.sum()
        self.state.threshold.fill_(float(best[paid < self.active][-1]))

    def _metric(self, e: Tensor, answer: Tensor) -> Tensor:
        return torch.where(answer[:, None], e @ self.forms[1], e @ self.forms[0])

    def step(self, rate: float, wake: bool) -> dict[str, float]:
        """One step; says what it lost."""
        s = self.state
        done = int(s.numbers[0])
        y, answer, weight, cost = self.pool.draw(ROWS, done)
        count, features = len(y), len(s.decoder)
        inside = torch.cat([y, torch.ones(count, 1)], 1)
        torch.mm(inside, s.encoder.T, out=self.all)
        torch.gt(self.all, s.threshold, out=self.on)
        rows, columns, z = self._codes(y)
        starts = _starts(rows, count)
        codes = _sparse(starts, columns, z, (count, features))
        e = codes @ s.decoder - y
        slope = weight[:, None] * self._metric(e, answer)
        own = cost[:, None] * (e @ self.own)
        lost, own_lost = float((slope * e).sum() / count), float((own * e).sum() / count / OWN)
        worst = (slope * e).sum(-1)
        slope = slope + own
        length = slope.norm(dim=-1, keepdim=True)
        slope = slope * (MOST * length.mean() / length.clamp_min(1e-20)).clamp_max(1)
        toward = torch.sparse.sampled_addmm(codes, slope, s.decoder.T, beta=0.0).values()
        # What the loss would gain from dropping a code is its price's rival.
        sizes = [((s.decoder @ form) * s.decoder).sum(-1) for form in (*self.forms, self.own)]
        square = weight[rows] * torch.where(answer[rows], sizes[1][columns], sizes[0][columns])
        square = square + cost[rows] * sizes[2][columns]
        worth = z.square() * square - 2 * z * toward
        near = z < NEAR * s.threshold[columns]
        charge = cost[rows]
        s.worth.mul_(0.95).index_add_(0, columns[near], worth[near])
        s.paid.mul_(0.95).index_add_(0, columns[near], charge[near])
        fires = float(charge.sum() / cost.sum())
        price = float(s.numbers[1])
        if not price:
            price = float(s.worth.clamp_min(0).sum() / s.paid.sum())
        price *= float(np.exp(0.02 * np.clip(fires / self.active - 1, -1, 1)))
        due = price * s.paid
        move = (due - s.worth) / (due + s.worth.abs()).clamp_min(1e-20)
        pull = PULL * price * charge / (s.threshold[columns] + z)
        toward = 2 * toward + pull
        order = torch.argsort(columns, stable=True)
        back = _starts(columns[order], features)
        along = _sparse(back, rows[order], z[order], (features, count))
        against = _sparse(back, rows[order], toward[order], (features, count))
        _descend(s.decoder, 2 * (along @ slope), s.decoder_mean, s.decoder_size, rate)
        _descend(s.encoder, against @ inside, s.encoder_mean, s.encoder_size, rate)
        s.threshold.mul_((STEP * min(1.0, rate / RATE * 4) * move).exp())
        s.fired += 1
        s.fired[columns] = 0
        s.numbers[:] = torch.tensor([done + 1, price, 0.98 * s.numbers[2] + 0.02 * fires])
        if wake and done % 20 == 0:
            self._wake(y, e, worst)
        told = {"lost": lost, "own": own_lost, "fires": fires, "price": price}
        at = answer[rows]
        told["at answers"] = float(charge[at].sum() / cost[answer].sum())
        return told | {"silent": float((s.fired > SILENT).double().mean())}

    def _codes(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, features and sizes of what fires; a feature that is far too loud is silenced."""
        s = self.state
        size = y.norm(dim=-1)
        while True:
            place = torch.from_numpy(np.flatnonzero(self.on.numpy()))
            rows, columns = place // len(s.decoder), place % len(s.decoder)
            z = self.all.view(-1)[place]
            loud = z * s.decoder.norm(dim=-1)[columns] > LOUD * (size + size.mean())[rows]
            if not loud.any():
                return rows, columns, z
            wrong = columns[loud].unique()
            s.threshold[wrong] = torch.inf
            s.fired[wrong] = SILENT
            self.on[:, wrong] = False

    def _wake(self, y: Tensor, e: Tensor, worst: Tensor) -> None:
        """Begin silent features anew, each at a token that was rebuilt badly.

        It writes what was left out there, and reads for it: in coordinates in which tokens are
        spread evenly it fires at the `FEW` of these tokens that lie furthest that way. One that
        knew a single token would be silent again.
        """
        s = self.state
        silent = (s.fired > SILENT).nonzero()[:WOKEN, 0]
        if not len(silent):
            return
        chance = torch.Generator().manual_seed(int(s.numbers[0]))
        tokens = torch.multinomial(worst.clamp_min(1e-12), len(silent), generator=chance)
        left = -e[tokens]
        size = left.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        reads = left @ self.spread
        along, _ = (reads @ y.T).topk(FEW + 1, dim=-1)
        # The furthest is read as all that was left out, the first that is not read as half of it.
        slope = size / 2 / (along[:, :1] - along[:, -1:]).clamp_min(1e-6)
        bias = size / 2 - slope * along[:, -1:]
        s.encoder[silent] = torch.cat([reads * slope, bias], 1)
        s.decoder[silent] = left / size
        s.threshold[silent] = size[:, 0] / 2
        for one in (s.encoder_mean, s.decoder_mean, s.encoder_size, s.decoder_size,
                    s.worth, s.paid, s.fired):  # fmt: skip
            one[silent] = 0.0


def _starts(sorted_rows: Tensor, count: int) -> Tensor:
    starts = torch.zeros(count + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(sorted_rows, minlength=count).cumsum(0)
    return starts


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _descend(values: Tensor, slope: Tensor, mean: Tensor, size: Tensor, rate: float) -> None:
    """Adam with one size per row, its step a share of the row: rows differ a thousandfold."""
    mean.mul_(0.9).add_(slope, alpha=0.1)
    size.mul_(0.99).add_(slope.square().mean(-1), alpha=0.01)
    length = values.square().mean(-1).sqrt()
    values.sub_(mean * (rate * length / size.sqrt().clamp_min(1e-20))[:, None])


def begin(sae: SAE) -> State:
    """What the first stage left, in a frame's coordinates."""
    bias = sae.bias - sae.decoder_bias @ sae.encoder
    threshold = sae.threshold if sae.threshold is not None else torch.zeros(sae.features)
    encoder = torch.cat([sae.encoder.T, bias[:, None]], 1)
    return State.of(encoder, sae.decoder.clone(), threshold.clamp_min(1e-3))


def finish(state: State, sae: SAE, frame: Frame) -> SAE:
    """The autoencoder in the stream's own coordinates, decoder rows of length one."""
    decoder = state.decoder @ frame.back
    size = decoder.norm(dim=-1)
    encoder = (state.encoder[:, :-1] @ frame.to) * size[:, None]
    return replace(
        sae, encoder=encoder.T.contiguous(), decoder=decoder / size[:, None],
        bias=state.encoder[:, -1] * size, threshold=(state.threshold * size).clamp_max(NEVER),
        decoder_bias=frame.centre, kind="jumprelu", k=None, norm="none", centred=True,
    )  # fmt: skip


def rate_of(step: int, steps: int, rounds: int) -> tuple[float, float]:
    """The rate of a step, and how far its round is."""
    length = -(-steps // rounds)
    part = step % length / length
    return RATE * min(1.0, (step % length + 1) / 50) * max(LAST, 1 - part), part


def tune(path: Path, tuner: Tuner, steps: int, rounds: int, each: int, look: Any) -> None:
    """Steps until there are `steps`; `look(state, told)` and a save after every `each`."""
    told: dict[str, float] = {}
    while (done := int(tuner.state.numbers[0])) < steps:
        rate, part = rate_of(done, steps, rounds)
        now = tuner.step(rate, part < AWAKE)
        told = {key: 0.98 * told.get(key, value) + 0.02 * value for key, value in now.items()}
        if not np.isfinite(now["lost"]):
            raise SystemExit(f"step {done}: not finite; the last state is {path}")
        if (done + 1) % each == 0 or done + 1 == steps:
            tuner.state.save(path)
            look(tuner.state, told | {"step": done + 1})
