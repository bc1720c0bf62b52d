"""Checkpoints of sharded tensors: exact on any number of ranks, also after damage, kills and full disks."""

import errno
import itertools
import json
import os
import random
import shutil
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers_runs import _CONTEXT, finished
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from afzal.errors import AfzalError
from afzal.train import checkpoint, ranks
from afzal.train.dtensor import local
from afzal.train.manifest import digest
from afzal.train.shard_layout import Box, layout_fault, overlapping_reads

CUTS = {
    "model": {
        "rows": (Shard(0), (5, 3)),
        "few rows": (Shard(0), (1,)),
        "columns": (Shard(1), (4, 7)),
        "copied": (Replicate(), (3, 2)),
        "empty": (Shard(0), (0, 4)),
        "plain": (None, (6,)),
    },
    "optimizer": {"rows|exp_avg": (Shard(0), (5, 3)), "rows|step": (None, ())},
    "random": {"torch": (None, (100,))},
}


def content(seed: int) -> dict[str, dict[str, Tensor]]:
    """Full tensors in several dtypes, all different for different seeds."""
    g = torch.Generator().manual_seed(seed)
    tensors = {group: {n: torch.randn(shape, generator=g) for n, (_, shape) in m.items()} for group, m in CUTS.items()}
    tensors["model"]["columns"] = tensors["model"]["columns"].bfloat16()
    tensors["random"]["torch"] = torch.randint(0, 256, (100,), generator=g, dtype=torch.uint8)
    return tensors


def cut(whole: dict[str, dict[str, Tensor]], turn: int = 0) -> dict[str, dict[str, Tensor]]:
    """The tensors sharded over all ranks; ``turn`` cuts matrices along another axis."""
    mesh = init_device_mesh("cpu", (ranks.world(),))

    def part(tensor: Tensor, placement: Replicate | Shard | None) -> Tensor:
        if placement is None:
            return tensor.clone()
        if isinstance(placement, Shard) and tensor.ndim == 2:
            placement = Shard((placement.dim + turn) % 2)
        return distribute_tensor(tensor, mesh, [placement])

    return {g: {n: part(t, CUTS[g][n][0]) for n, t in members.items()} for g, members in whole.items()}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a
    )


def _as_rank(rank: int, world: int, folder: Path, work, args) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
        work(*args)
        dist.destroy_process_group()
    except BaseException:
        (folder / f"rank-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


def start(world: int, folder: Path, work, *args) -> list:
    """Processes that are ranks of one group, each running ``work(*args)``."""
    folder.mkdir(parents=True)
    processes = [_CONTEXT.Process(target=_as_rank, args=(r, world, folder, work, args)) for r in range(world)]
    for process in processes:
        process.start()
    return processes


def together(world: int, folder: Path, work, *args) -> None:
    codes = [finished(process) for process in start(world, folder, work, *args)]
    assert codes == [0] * world, "\n".join(file.read_text() for file in folder.glob("rank-*.txt"))


def save_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, cut(content(step)), {"step": step, "third": 1 / 3, "rank": ranks.rank()})


def newest_step(folder: Path, warnings: list[str] | None = None) -> int | None:
    path = checkpoint.newest(folder, warnings.append if warnings is not None else pytest.fail)
    return None if path is None else checkpoint.step_of(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    together(2, folder / "save", save_steps, folder / "checkpoints", 10, 20)
    return folder / "checkpoints"


@pytest.fixture
def two_steps(saved, tmp_path) -> Path:
    """Checkpoints 10 and 20 that two ranks wrote."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


# --- exact on any number of ranks -------------------------------------------------------------------------------------


def read_back(path: Path, seed: int) -> None:
    """Full tensors, and shards cut as before and along the other axis, have every bit of the saved ones."""
    expected = content(seed)
    loaded, state = checkpoint.load(path)
    assert loaded.keys() == expected.keys()
    assert all(same(loaded[g], expected[g]) for g in expected)
    assert state == {"step": seed, "third": 1 / 3, "rank": 0}
    for turn in (0, 1):
        into = cut({g: {n: torch.zeros_like(t) for n, t in m.items()} for g, m in expected.items()}, turn)
        for group, members in into.items():
            assert checkpoint.shapes(path, group) == {n: tuple(t.shape) for n, t in expected[group].items()}
            checkpoint.fill(path, group, members)
            assert same({n: whole(t) for n, t in members.items()}, expected[group])


@pytest.mark.parametrize(("writers", "readers"), [(2, 3), (3, 2)])
def test_what_some_ranks_save_any_number_reads(tmp_path, writers, readers):
    folder = tmp_path / "checkpoints"
    together(writers, tmp_path / "save", save_steps, folder, 7)
    together(readers, tmp_path / "read", read_back, folder / "step-00000007", 7)
    loaded, _ = checkpoint.load(folder / "step-00000007")  # one process, without a group
    assert all(same(loaded[g], content(7)[g]) for g in loaded)
    names = sorted(p.name for p in (folder / "step-00000007").iterdir())
    in_parts = [f"{g}-{r + 1:05d}-of-{writers:05d}.safetensors" for g in ("model", "optimizer") for r in range(writers)]
    assert names == ["manifest.json", *in_parts, "random.safetensors"]


def test_what_one_process_saves_several_ranks_read(tmp_path):
    state = {"step": 7, "third": 1 / 3, "rank": 0}
    path = checkpoint.save(tmp_path / "checkpoints", 7, content(7), state)
    together(2, tmp_path / "read", read_back, path, 7)


def several_axes(folder: Path) -> None:
    """Four ranks as 2 x 2: copies of parts, parts of parts, parts along two axes, in the order of FSDP over TP."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    tensor = torch.arange(66.0).view(11, 6)
    placements = {
        "copies of parts": [Replicate(), Shard(0)],
        "parts with copies": [Shard(1), Replicate()],
        "two axes": [Shard(0), Shard(1)],
        "parts of parts": [Shard(0), Shard(0)],
    }
    tensors = {name: distribute_tensor(tensor, mesh, how) for name, how in placements.items()}
    inner = distribute_tensor(torch.arange(48.0).view(8, 6), mesh["model"], [Shard(0)]).to_local()
    mine = inner.chunk(2)[mesh.get_local_rank("data")]
    over = [_StridedShard(0, split_factor=2), Shard(0)]
    tensors["FSDP over TP"] = DTensor.from_local(mine, mesh, over, shape=torch.Size((8, 6)), stride=(6, 1))
    expected = dict.fromkeys(placements, tensor) | {"FSDP over TP": torch.arange(48.0).view(8, 6)}
    path = checkpoint.save(folder, 1, {"model": tensors}, {})
    assert same(checkpoint.load(path)[0]["model"], expected)
    for t in tensors.values():
        t.to_local().zero_()
    checkpoint.fill(path, "model", tensors)
    assert same({n: whole(t) for n, t in tensors.items() if n in placements}, dict.fromkeys(placements, tensor))
    assert torch.equal(tensors["FSDP over TP"].to_local(), mine)


def test_parts_along_several_axes_of_a_mesh(tmp_path):
    together(4, tmp_path / "four", several_axes, tmp_path / "checkpoints")


def only_first_part(path: Path) -> None:
    """Rank 0 of two fills its rows although the other rank's file is gone; a full tensor needs both."""
    into = cut({"model": {"rows": torch.zeros(5, 3)}})["model"]
    if ranks.leads():
        checkpoint.fill(path, "model", into)
        assert torch.equal(local(into["rows"]), content(10)["model"]["rows"][:3])
        with pytest.raises(AfzalError, match="00002-of-00002"):
            checkpoint.fill(path, "model", {"rows": torch.zeros(5, 3)})
    ranks.gather(None)


def test_a_rank_reads_the_files_that_hold_its_part_only(two_steps, tmp_path):
    (two_steps / "step-00000010" / "model-00002-of-00002.safetensors").unlink()
    together(2, tmp_path / "read", only_first_part, two_steps / "step-00000010")


def test_a_model_that_does_not_fit_is_refused(two_steps):
    path = two_steps / "step-00000010"
    wrong = {"rows": torch.zeros(5, 4), "plain": torch.zeros(6, dtype=torch.bfloat16), "stranger": torch.zeros(1)}
    for name, tensor in wrong.items():
        with pytest.raises(AfzalError, match="not of this model") as caught:
            checkpoint.fill(path, "model", {name: tensor})
        assert name in str(caught.value)
    with pytest.raises(AfzalError, match="no such tensor"):
        checkpoint.fill(path, "nothing", {"rows": torch.zeros(5, 3)})
    assert checkpoint.shapes(path, "nothing") == {}


def test_needed_reads_cover_every_part_of_every_grid_exactly_once():
    """Random grids and random boxes: reading piece by piece gives the slice itself."""
    chance = random.Random(0)
    for _ in range(200):
        shape = [chance.randint(1, 6) for _ in range(chance.randint(0, 3))]
        tensor = torch.randn(shape)
        edges = [sorted({0, n, *(chance.randint(0, n) for _ in range(2))}) for n in shape]
        pieces: dict[str, list] = {"": [[], []]}
        for axis in edges:
            pieces = {
                f"{file}.{i}": [[*start, a], [*size, b - a]]
                for file, (start, size) in pieces.items()
                for i, (a, b) in enumerate(itertools.pairwise(axis))
            }
        entry = {"dtype": "F32", "shape": shape, "pieces": pieces}
        assert layout_fault(entry) == ""
        first = [chance.randint(0, n - 1) for n in shape]
        wanted = Box(tuple(first), tuple(chance.randint(1, n - a) for a, n in zip(first, shape, strict=True)))
        assembled, times = torch.zeros(wanted.size), torch.zeros(wanted.size)
        for file, read in overlapping_reads("t", entry, wanted).items():
            start, size = pieces[file]
            piece = tensor[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
            assembled[read.target] += piece[read.source]
            times[read.target] += 1
        assert torch.equal(assembled, tensor[tuple(slice(a, a + n) for a, n in zip(*wanted, strict=True))])
        assert (times == 1).all()


WHOLE = {"dtype": "F32", "shape": [4, 2], "pieces": {"a": [[0, 0], [3, 2]], "b": [[3, 0], [1, 2]]}}
NOT_WHOLE = {
    "a piece is missing": {"pieces": {"a": [[0, 0], [3, 2]]}},
    "no piece": {"pieces": {}},
    "the first is missing": {"pieces": {"b": [[3, 0], [1, 2]]}},
    "overlap": {"pieces": {"a": [[0, 0], [4, 2]], "b": [[3, 0], [1, 2]]}},
    "gap": {"pieces": {"a": [[0, 0], [2, 2]], "b": [[3, 0], [1, 2]]}},
    "beyond the end": {"pieces": {"a": [[0, 0], [3, 2]], "b": [[3, 0], [2, 2]]}},
    "begins after the end": {"pieces": {"a": [[0, 0], [4, 2]], "b": [[5, 0], [0, 2]]}},
    "negative": {"pieces": {"a": [[0, 0], [3, 2]], "b": [[-1, 0], [1, 2]]}},
    "a number that is none": {"pieces": {"a": [[0, 0], [3, True]], "b": [[3, 0], [1, 2]]}},
    "fewer axes": {"pieces": {"a": [[0], [4]]}},
    "no pair": {"pieces": {"a": [[0, 0]]}},
    "twice": {"pieces": {"a": [[0, 0], [4, 2]], "b": [[0, 0], [4, 2]]}},
    "pieces of nothing": {"shape": [0, 2]},
    "unknown dtype": {"dtype": "F31"},
    "no shape": {"shape": None},
    "shape of text": {"shape": ["4", 2]},
}


def test_pieces_that_are_not_the_whole_are_told_from_those_that_are():
    assert layout_fault(WHOLE) == ""
    assert layout_fault({"dtype": "F32", "shape": [], "pieces": {"a": [[], []]}}) == ""
    assert layout_fault({"dtype": "F32", "shape": [3, 0], "pieces": {}}) == ""
    for name, change in NOT_WHOLE.items():
        assert layout_fault(WHOLE | change), name
    assert layout_fault([])
    assert layout_fault({"shape": [1]})


# --- damage -----------------------------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def agree_on(folder: Path, step: int, name: str) -> None:
    warnings: list[str] = []
    assert newest_step(folder, warnings) == step
    assert len(warnings) == 1
    assert name in warnings[0]


def test_damage_to_any_file_and_all_ranks_take_the_checkpoint_before(two_steps, tmp_path):
    """Each rank checks only some of the files; still both skip the checkpoint, and so does a single process."""
    path = two_steps / "step-00000020"
    for number, file in enumerate(sorted(path.iterdir())):
        kept = file.read_bytes()
        for damage, hurt in enumerate((lambda f: _flip(f, -1), lambda f: f.unlink(), lambda f: os.truncate(f, 9))):
            hurt(file)
            agree_on(two_steps, 10, file.name)
            if damage == number % 3:
                together(2, tmp_path / f"{number}-{damage}", agree_on, two_steps, 10, file.name)
            file.unlink(missing_ok=True)
            file.write_bytes(kept)
    assert newest_step(two_steps) == 20


def swap(manifest: dict) -> None:
    pieces = manifest["parts"]["model"]["rows"]["pieces"]
    pieces.update(zip(pieces, reversed(list(pieces.values())), strict=True))


def outside(manifest: dict) -> None:
    manifest["files"]["../model.safetensors"] = manifest["files"].pop("model-00001-of-00002.safetensors")


def pieces_outside(manifest: dict) -> None:
    pieces = manifest["parts"]["model"]["rows"]["pieces"]
    pieces["../step-00000010/model-00001-of-00002.safetensors"] = pieces.pop("model-00001-of-00002.safetensors")


def other_shape(manifest: dict) -> None:
    manifest["parts"]["model"]["plain"] |= {"shape": [3], "pieces": {"model-00001-of-00002.safetensors": [[0], [3]]}}


def other_dtype(manifest: dict) -> None:
    manifest["parts"]["model"]["rows"]["dtype"] = "I32"


def huge(manifest: dict) -> None:
    pieces = {"model-00001-of-00002.safetensors": [[0], [1 << 62]]}
    manifest["parts"]["model"]["plain"] |= {"shape": [1 << 62], "pieces": pieces}


HOSTILE = {
    "a file outside": outside,
    "a piece outside": pieces_outside,
    "an absolute file": lambda m: m["files"].update({"/etc/x.safetensors": m["files"]["random.safetensors"]}),
    "a piece in no file": lambda m: m["files"].pop("model-00002-of-00002.safetensors"),
    "pieces swapped": swap,
    "less of a tensor": other_shape,
    "another dtype": other_dtype,
    "a hole": lambda m: m["parts"]["model"]["rows"]["pieces"].pop("model-00001-of-00002.safetensors"),
    "a huge hole": lambda m: m["parts"]["model"]["rows"].update(shape=[1 << 62, 3]),
    "more than a file holds": huge,
    "a size of text": lambda m: m["files"]["random.safetensors"].update(bytes="all"),
    "parts of text": lambda m: m.update(parts="model"),
    "a group of text": lambda m: m["parts"].update(model="rows"),
    "a tensor that is not there": lambda m: m["parts"]["model"].update(new=m["parts"]["model"]["rows"]),
    "another size": lambda m: m["files"]["random.safetensors"].update(bytes=1),
    "another hash": lambda m: m["files"]["random.safetensors"].update(sha256="0" * 64),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_manifest_that_lies_with_a_right_hash_is_refused(two_steps, attack):
    file = two_steps / "step-00000020" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    HOSTILE[attack](manifest)
    file.write_text(json.dumps(manifest | {"sha256": digest(manifest)}))
    with pytest.raises(AfzalError, match="damaged"):
        checkpoint.load(two_steps / "step-00000020")


# --- one rank fails ---------------------------------------------------------------------------------------------------


def second_rank_has_no_space(folder: Path) -> None:
    save_steps(folder, 1)
    real = os.write
    if ranks.rank() == 1:

        def write(descriptor, data):
            if "safetensors" in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data)

        os.write = write
    with pytest.raises(AfzalError, match="disk is full") as caught:
        save_steps(folder, 2)
    assert ("rank 1" in str(caught.value)) == ranks.leads()
    os.write = real
    ranks.gather(None)  # rank 0 has cleaned up by now
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001"]
    assert newest_step(folder) == 1
    ranks.gather(None)
    save_steps(folder, 2)
    assert newest_step(folder) == 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from Linux's /proc")
def test_a_full_disk_on_one_rank_stops_all_and_leaves_the_checkpoint_before(tmp_path):
    together(2, tmp_path / "full", second_rank_has_no_space, tmp_path / "checkpoints")


def second_rank_sees_another_disk(folder: Path) -> None:
    mine = folder if ranks.leads() else folder.with_name("elsewhere")
    with pytest.raises(AfzalError, match="does not see the folder") as caught:
        save_steps(mine, 1)
    assert "share" in caught.value.remedy
    ranks.gather(None)
    assert list(folder.iterdir()) == []


def test_ranks_that_do_not_share_a_disk_are_told(tmp_path):
    together(2, tmp_path / "apart", second_rank_sees_another_disk, tmp_path / "checkpoints")


def keep_two(folder: Path) -> None:
    save_steps(folder, 1, 2, 3, 4)
    checkpoint.prune(folder, 2)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000003", "step-00000004"]
    ranks.gather(None)
    save_steps(folder, 3)  # an earlier step again: the later one is given up
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000003"]
    assert checkpoint.fingerprint(folder / "step-00000003", "model")


def test_prune_and_going_back_with_several_ranks(tmp_path):
    together(2, tmp_path / "keep", keep_two, tmp_path / "checkpoints")


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def save_for_ever(folder: Path, told: Path) -> None:
    path = checkpoint.newest(folder, lambda _: None)
    step = checkpoint.step_of(path) if path else 0
    while True:
        step += 1
        save_steps(folder, step)
        if ranks.leads():
            told.write_text(str(step))
        checkpoint.prune(folder, 2)


@pytest.mark.slow
def test_kill_9_of_one_rank_or_all_at_20_random_times_costs_no_checkpoint(tmp_path):
    chance, folder, told = random.Random(0), tmp_path / "checkpoints", tmp_path / "told"
    for attempt in range(20):
        told.write_text("0")
        processes = start(2, tmp_path / f"attempt-{attempt}", save_for_ever, folder, told)
        while told.read_text() in ("", "0"):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        victims = chance.sample(processes, chance.choice([1, 2]))
        for process in victims:
            process.kill()
        time.sleep(chance.uniform(0, 0.05))
        for process in processes:  # as torchrun does with the remaining ranks
            process.kill()
            process.join()
        newest = newest_step(folder)  # fails if a checkpoint had to be skipped
        assert newest is not None
        assert newest >= int(told.read_text() or 0)
        loaded, state = checkpoint.load(folder / f"step-{newest:08d}")
        assert all(same(loaded[g], content(newest)[g]) for g in loaded)
        assert state["step"] == newest
