"""The rules of every policy, written as plainly as possible: one head, Python lists, no shortcuts.

And the figures of an endless stream, token by token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

# Layers of pyramidkv are snapkv. Policies that read keys have references of their own.
NAMES = [
    "full",
    "comb",
    "local",
    "streaming",
    "h2o",
    "buzz",
    "buzz_fast",
    "buzz_no_max",
    "snapkv",
    "tova",
    "kvzip",
    "random",
]
LATEST = ("buzz_fast", "snapkv", "tova", "kvzip")  # which look at the scores of the current call alone


@dataclass
class NaiveHead:
    """One head of one row: what it holds, what it received, and the rule it evicts by."""

    name: str
    params: dict
    slots: list[int] = field(default_factory=list)  # any labels
    scores: list[float] = field(default_factory=list)
    sampled: int = 0
    norms: list[float] = field(default_factory=list)  # of the values, where they count; none: they are all 1

    def call(self, labels: list[int], received: list[float]) -> None:
        """Append labels, add what each slot received in the call, evict once if the policy says so."""
        self.slots += labels
        self.scores += [0.0] * len(labels)
        if self.name in LATEST:
            self.scores = list(received)
        elif self.name == "comb" and not self.params["sums"]:
            self.scores = [max(old, new) for old, new in zip(self.scores, received, strict=True)]
        else:
            self.scores = [old + new for old, new in zip(self.scores, received, strict=True)]
        keep, self.sampled = self.kept()
        if self.name == "comb" and len(keep) < len(self.slots):
            self.scores = (torch.tensor(self.scores) * self.params["decay"]).tolist()  # in float32 as well
        self.slots = [self.slots[i] for i in keep]
        self.scores = [self.scores[i] for i in keep]

    def kept(self) -> tuple[list[int], int]:
        """Indices that stay, and the new number of sampled slots."""
        assert self.name in NAMES
        n, p = len(self.slots), self.params
        everything = list(range(n))
        if self.name == "full":
            return everything, 0
        if self.name == "h2o":
            first = p.get("sink", 0)
            if n <= first + p["heavy"] + p["window"]:
                return everything, 0
            before = everything[first : n - p["window"]]
            ranked = sorted(before, key=lambda i: (-self.scores[i], i))
            return everything[:first] + sorted(ranked[: p["heavy"]]) + everything[n - p["window"] :], 0
        if self.name == "tova":
            if n <= p["capacity"]:
                return everything, 0
            return sorted(sorted(everything, key=lambda i: (-self.scores[i], i))[: p["capacity"]]), 0
        if self.name == "snapkv":
            return self.kept_of_prompt(everything)
        sink, window = p["sink"], p["window"]
        if self.name == "kvzip":
            if self.sampled or n <= p["capacity"]:
                return everything, self.sampled or n
            ranked = sorted(everything[sink : n - window], key=lambda i: (-self.scores[i], i))
            told = sorted(ranked[: p["capacity"] - sink - window])
            return everything[:sink] + told + everything[n - window :], p["capacity"]
        if self.name == "comb":
            lazy = max(1, p["capacity"] // 8) if p["lazy"] is None else p["lazy"]
            if n <= p["capacity"] + lazy:
                return everything, self.sampled
            prompt, worth = n > p["capacity"] + lazy + 1, self.scores
            if window is None:
                window = max(1, p["capacity"] // 4)
                if not prompt and not self.sampled:
                    window = max(window, min(p["capacity"] // 2, p["capacity"] - sink))
            if prompt and p["values"] and self.norms:
                worth = [score * norm for score, norm in zip(worth, self.norms, strict=True)]
            if not prompt and not self.sampled and p["recency"]:  # in float32, as products that round may tie
                worth = (torch.tensor(worth) * torch.arange(1, n + 1) * (1 / torch.tensor(n))).tolist()
            ranked = sorted(everything[sink : n - window], key=lambda i: (-worth[i], i))
            heavy = sorted(ranked[: p["capacity"] - sink - window])
            return everything[:sink] + heavy + everything[n - window :], int(self.sampled or prompt)
        if self.name == "random":
            if n <= p["capacity"]:
                return everything, self.sampled
            generator = torch.Generator().manual_seed(p.get("seed", 0) * 2**20 + self.sampled)
            drawn = torch.randperm(n - sink - window, generator=generator).tolist()
            kept = sorted(sink + i for i in drawn[: p["capacity"] - sink - window])
            return everything[:sink] + kept + everything[n - window :], self.sampled + 1
        if self.name in ("streaming", "local"):
            if n <= sink + window:
                return everything, 0
            if self.name == "local":
                return everything[n - sink - window :], 0
            return everything[:sink] + everything[n - window :], 0
        other = n - sink - window
        if not (n > sink + window and other > p["threshold"]):
            return everything, self.sampled
        c = (p["stride"] + 1) // 2
        new_sample = []
        for place in range(self.sampled):
            if place % c == 0:
                new_sample.append(sink + place)
        fresh = everything[sink + self.sampled : n - window]
        for start in range(0, len(fresh), p["stride"]):
            segment = fresh[start : start + p["stride"]]
            best = segment[0]
            if self.name != "buzz_no_max":
                for i in segment[1:]:
                    if self.scores[i] > self.scores[best]:
                        best = i
            new_sample.append(best)
        return everything[:sink] + new_sample + everything[n - window :], len(new_sample)

    def kept_of_prompt(self, everything: list[int]) -> tuple[list[int], int]:
        """SnapKV: once, after the first call. `sampled` marks that it is over."""
        n, p = len(everything), self.params
        if self.sampled:
            return everything, self.sampled
        if n <= p["capacity"]:
            return everything, n
        before = n - p["window"]
        half = p["kernel"] // 2
        pooled = []
        for i in range(before):
            near = [self.scores[j] if 0 <= j < before else 0.0 for j in range(i - half, i + half + 1)]
            pooled.append(sum(near) / p["kernel"])
        pooled = [float("-inf") if score != score else score for score in pooled]
        ranked = sorted(range(before), key=lambda i: (-pooled[i], i))
        if p.get("values"):
            return critical(pooled, self.norms or [1.0] * n, everything[before:], p["capacity"], 1), p["capacity"]
        return sorted(ranked[: p["capacity"] - p["window"]]) + everything[before:], p["capacity"]


def critical(worth: list[float], norms: list[float], window: list[int], budget: int, least: int) -> list[int]:
    """CriticalKV's slots: half of them by mean attention, the others by that times the norm of the value."""
    kept = list(window)
    for i in sorted(range(len(worth)), key=lambda i: (-worth[i], i)):
        if len(kept) < max(least, budget // 2):
            kept.append(i)
    for i in sorted(range(len(worth)), key=lambda i: (-(worth[i] + 1e-4) * norms[i], i)):
        if len(kept) < budget and i not in kept:
            kept.append(i)
    return sorted(kept)


def queries_counted(name: str, params: dict, queries: int) -> int:
    """How many of a call's last queries a policy looks at."""
    return min(queries, {"tova": 1, "snapkv": params.get("window", 0)}.get(name, queries))


def shared_scores(name: str, scores: torch.Tensor) -> torch.Tensor:
    """Scores [B, H, L] as the heads of a layer read them: TOVA's heads agree, all others look for themselves."""
    return scores.sum(dim=1, keepdim=True).expand_as(scores) if name == "tova" else scores


def walk(policy, length: int, sampled: int) -> tuple[list[tuple[int, int]], int]:
    """Cache length during and after each one-token call from a state on, until a state comes back; and its number."""
    calls, seen = [], {}
    while (length, sampled) not in seen:
        seen[length, sampled] = len(calls)
        during = length + 1
        plan = policy.plan(during, sampled)
        length, sampled = (during, sampled) if plan is None else plan
        calls.append((during, length))
    return calls, seen[length, sampled]


def walked_peak(policy, length: int, sampled: int) -> int:
    calls, _ = walk(policy, length, sampled)
    return max(during for during, _ in calls)


def walked_steady(policy) -> tuple[float, int]:
    calls, again = walk(policy, 0, 0)
    lengths = [after for _, after in calls[again:]]
    return sum(lengths) / len(lengths), max(lengths)
