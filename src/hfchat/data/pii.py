"""Replace personal data in documents."""

from collections.abc import Sequence

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.typeshelper import StatHints

from hfchat.safety.pii import KINDS, PII


class ReplacePII(PipelineStep):
    """Replaces personal data by values that are nobody's, and counts it: statistics `pii_email` and so on.

    Args:
        kinds: Some of `email`, `ip`, `phone` and `card`.
        phone_regions: Countries whose national phone numbers are looked for.
    """

    type = "✂️ - FORMAT"
    name = "📞 PII"

    def __init__(self, kinds: Sequence[str] = KINDS, phone_regions: Sequence[str] = ("US", "GB")):
        super().__init__()
        self.pii = PII(kinds, phone_regions)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for document in data:
            self.stat_update(StatHints.total)
            with self.track_time():
                document.text, counts = self.pii.replace(document.text)
            for kind, count in counts.items():
                self.stat_update(f"pii_{kind}", value=count)
            yield document
