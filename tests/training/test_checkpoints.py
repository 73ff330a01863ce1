"""last.ckpt: sealed, and what a full disk, a flipped bit and another version make of it."""

from __future__ import annotations

import os
import resource
import signal

import pytest
import torch

from netslim.training.loop.checkpoints import UNREADABLE, SealedCheckpoints

CONTENT = {"state_dict": {"weight": torch.arange(3000.0)}, "loops": {"epoch": 3}}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "last.ckpt"
    SealedCheckpoints().save_checkpoint(CONTENT, path)
    return path


def test_torch_reads_what_is_sealed(written):
    for read in (torch.load, SealedCheckpoints().load_checkpoint):
        found = read(written, weights_only=True)
        assert torch.equal(found["state_dict"]["weight"], CONTENT["state_dict"]["weight"])


def test_every_flipped_bit_is_noticed_or_changes_nothing(written):
    whole = written.read_bytes()
    noticed = 0
    for place in range(7, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        written.write_bytes(damaged)
        try:
            found = SealedCheckpoints().load_checkpoint(written)
        except UNREADABLE:
            noticed += 1
            continue
        assert torch.equal(found["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert noticed >= len(range(7, len(whole), 97)) - 1  # one may hit the words before the digest


def test_one_of_version_0_1_is_judged_by_its_own_checksums(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(CONTENT, path)
    SealedCheckpoints().load_checkpoint(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert torch.load(path, weights_only=True)  # torch does not mind
    with pytest.raises(ValueError, match="checksum"):
        SealedCheckpoints().load_checkpoint(path)


@pytest.mark.skipif(os.name != "posix", reason="limits of the system")
def test_a_disk_that_is_full_is_told_with_the_path_and_the_old_file_stays(written):
    before, limits = written.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        with pytest.raises(OSError, match=r"too large: .*last\.ckpt") as raised:
            SealedCheckpoints().save_checkpoint(CONTENT, written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.filename == str(written)
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]
