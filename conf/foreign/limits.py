"""What foreign content may cost. Each bound is far above anything honest that was seen, which stands beside it."""

from __future__ import annotations

MIB = 1 << 20

MOST_LAYERS = 10_000
MOST_HEADS = 100_000
MOST_TOKENS = 1 << 24
"""Ids of a tokenizer are below it. The largest published vocabulary has 300,000 tokens."""
MOST_OF_A_SIZE = 1_000_000_000
"""Of a model's config. The deepest published model has 200 blocks, the widest 50,000 elements, the largest vocabulary
300,000 tokens."""

YAML_BYTES = 4 * MIB
RESOLVED_CHARACTERS = 16 * MIB
YAML_VALUES = 200_000
"""Of a config. FLAN's mixture of 1,800 tasks has 20,000."""
ROW_BYTES = 32 * MIB
"""Of one row, as text. A book has 1 MiB; no sequence is as long as a tenth of this."""
FILE_BYTES = 128 * MIB
"""Of a file that is read as a whole: one JSON object with rows inside. The largest published task has 50 MiB."""
MOST_VALUES = 8_000_000
"""Commas and brackets of a long JSON text: the objects that it becomes take a hundred bytes for each."""
MOST_DEPTH = 100
"""Of JSON values inside one another. Schemas of tools go 15 deep."""
COLUMN_BYTES = 1024 * MIB
"""Memory for a batch of a table beside the table's own size: the batch is made so that an honest one needs a tenth."""
UNPACKED_BYTES = 64 * MIB
UNPACKED_TIMES = 100
"""Size of a packed file's content: so much, and so many times the file's. Text packs to a twentieth at best."""
BLANK_LINES = 1_000_000
"""One after another."""

TEMPLATE_CHARACTERS = 1 * MIB
"""Of a chat template. The longest of the published ones has 40,000."""
RENDER_SECONDS = 1.0
RENDER_SECONDS_PER_MIB = 10.0
"""CPU time for one conversation: so much, and so much more for its size. Published templates take 0.0001 s, and 0.02 s
for a MiB."""
RENDER_BYTES = 512 * MIB
"""Memory beside that of the process itself."""
RENDERED_CHARACTERS = 1 * MIB
RENDERED_TIMES = 16
"""Length of the text: so much, and so many times the conversation's. Published templates add 20,000 characters (a list
of tools) and write a conversation once."""
