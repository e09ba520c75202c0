"""torchtitan's packer for images hands out nothing while the dataset lasts, unless samples fill a row to the token.

A row that is not exactly full is kept for later samples, and the same samples are picked again each time. Right is to
hand out a row that no sample in the buffer fits into: a plain first-fit packer of the same buffer does. With a streamed
dataset that repeats there is no end at which all is handed out. Exit status 1: the bug shows.
"""

import random

import torch
from torchtitan.hf_datasets.multimodal.utils.packing import MMSamplePacker

CAPACITY, BUFFER, SAMPLES = 4096, 100, 2000
draw = random.Random(0)
lengths = [draw.randint(250, 450) for _ in range(SAMPLES)]
packer = MMSamplePacker(CAPACITY, buffer_size=BUFFER, batch_size=1)
for count, length in enumerate(lengths, start=1):
    packer.add_sample({name: torch.zeros(length, dtype=torch.long) for name in ("input_ids", "labels", "positions")})
    if count in (BUFFER, 500, SAMPLES):
        held = len(packer._sample_buffer)
        print(
            f"after {count} samples: {len(packer.packed_samples)} rows handed out, {held} samples held (limit {BUFFER})"
        )

rows, buffer = 0, []
for length in lengths:
    buffer.append(length)
    while len(buffer) >= BUFFER:
        room, rest = CAPACITY, []
        for own in buffer:
            room, rest = (room - own, rest) if own <= room else (room, [*rest, own])
        buffer, rows = rest, rows + 1
print(f"a first-fit packer of the same buffer: {rows} rows, {len(buffer)} samples held")
raise SystemExit(int(len(packer.packed_samples) < rows // 2))
