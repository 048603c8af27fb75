"""The stage that turns drafts into tokens, many at once because the tokenizer is faster so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_prep.rows.conversation import Rejected
from data_prep.rows.stage import Counts, Part
from data_prep.samples import encode, loaded
from data_prep.samples.draft import Draft, Sample
from data_prep.samples.encoded import Encoded
from data_prep.templates.chat import Options

CHAT_VERSION = 2
"""Of the samples of chat templates: 2 keeps tool calls and reasoning, and ends turns where the template does."""


@dataclass(frozen=True)
class Encode:
    """Template and tokenizer.

    A few-shot draft loses exemplars, the last ones first, until its prompt has at most ``prompt_tokens`` tokens and the
    sample at most ``seq_len``; a draft that has no room for a single one is rejected as ``no_exemplar_fits``. Rejects
    what ``encode.encode`` does, too.
    """

    template: str
    """alpaca, plain or chat."""
    tokenizer: str
    """Folder of the corpus's tokenizer."""
    seq_len: int
    prompt_tokens: int = 0
    """Longest few-shot prompt."""
    options: Options = field(default_factory=Options)

    def batch(self, drafts: Sequence[Draft], counts: Counts) -> list[list[Sample | Rejected]]:
        outcomes: dict[int, list[Sample | Rejected]] = {}
        # Draft -> the number of exemplars that it is tried with next.
        waiting = {place: draft.shots for place, draft in enumerate(drafts)}
        tokenizer = loaded.tokenizer(self.tokenizer)
        while waiting:
            conversations = [drafts[place].conversation(shots) for place, shots in waiting.items()]
            encoded = encode.encode_batch(conversations, self.template, tokenizer, self.options)
            for place, (found, notes) in zip(list(waiting), encoded, strict=True):
                shots, draft, first = waiting.pop(place), drafts[place], found[0]
                if isinstance(first, Rejected) or shots == 0 or self._has_room(first):
                    if notes:
                        counts.found.update(notes)
                        counts.normalised.update(notes)
                    outcomes[place] = [_sample(draft, each) for each in found]
                elif shots > 1:
                    waiting[place] = shots - 1
                else:
                    outcomes[place] = [Rejected("no_exemplar_fits", f"{len(first.ids)} tokens with one exemplar")]
        return [outcomes[place] for place in range(len(drafts))]

    def identity(self) -> Part:
        written = {"chat": CHAT_VERSION} if self.template == "chat" else {}
        default = Options()
        options = {key: value for key, value in vars(self.options).items() if value != getattr(default, key)}
        return {"source": {"template": self.template, **written}, "data": options}

    def _has_room(self, sample: Encoded) -> bool:
        return sample.mask.index(1) <= self.prompt_tokens and len(sample.ids) <= self.seq_len


def _sample(draft: Draft, outcome: Encoded | Rejected) -> Sample | Rejected:
    """The sample of a draft; its variant says which form a style took, or which turn is the target."""
    if isinstance(outcome, Rejected):
        return outcome
    tokens = replace(outcome, variant=draft.variant + outcome.variant) if draft.variant else outcome
    return Sample(draft.record, tokens)
