"""Checkpoints: exact round trips, and the state after damage, a full disk, a kill and a wrong clock."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afzal.errors import AfzalError
from afzal.train import checkpoint
from afzal.train.manifest import digest
from afzal.train.optim import optimizer_slots

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool]


def content(seed: int) -> tuple[dict, dict]:
    """Two groups of tensors and a state, all different for different seeds."""
    g = torch.Generator().manual_seed(seed)
    policy = {"weight": torch.randn(32, 16, generator=g), "bias": torch.randn(16, generator=g).bfloat16()}
    optimizer = {"step": torch.tensor(float(seed)), "exp_avg": torch.randn(32, 16, generator=g)}
    rng = torch.randint(0, 256, (100,), generator=g, dtype=torch.uint8)
    state = {"step": seed, "loss": 0.1 + 0.2 * seed, "order": [3, 1, 2], "nested": {"a": None, "b": True}}
    return {"policy": policy, "optimizer": optimizer, "rng": {"cpu": rng}}, state


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[g].keys() == b[g].keys()
        and all(a[g][n].dtype == b[g][n].dtype and torch.equal(a[g][n], b[g][n]) for n in a[g])
        for g in a
    )


def save_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, *content(step))


def newest_step(folder: Path, warnings: list[str] | None = None) -> int | None:
    heard: list[str] = [] if warnings is None else warnings
    path = checkpoint.newest(folder, heard.append)
    if warnings is None:
        assert not heard
    return None if path is None else checkpoint.step_of(path)


# --- round trips ------------------------------------------------------------------------------------------------------


def test_round_trip_gives_back_every_bit(tmp_path):
    tensors, state = content(7)
    path = checkpoint.save(tmp_path / "checkpoints", 7, tensors, state)
    assert path.name == "step-00000007"
    loaded, loaded_state = checkpoint.load(path)
    assert same(tensors, loaded)
    assert loaded_state == state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_odd_shape_comes_back_bit_for_bit(tmp_path, dtype):
    base = torch.arange(60, dtype=torch.uint8).repeat(8).view(dtype)[:30].clone()
    if dtype is torch.bool:
        base = base.view(torch.uint8).remainder(2).view(torch.bool)
    group = {
        "plain": base,
        "scalar": base[3].clone(),
        "empty": base[:0],
        "empty_2d": base[:0].reshape(0, 5),
        "transposed": base.reshape(5, 6).t(),
        "strided": base[::3],
        "expanded": base[:1].expand(4),
    }
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, 1, {"all": group}, {}))
    for name, tensor in group.items():
        back = loaded["all"][name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(
            back.contiguous().reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)
        ), name


def test_files_are_what_safetensors_itself_reads_and_writes(tmp_path):
    """Header and data match the reference library: it reads our file, and its own file has the same tensors."""
    tensors, state = content(1)
    path = checkpoint.save(tmp_path, 1, tensors, state)
    for group, members in tensors.items():
        assert same({"g": members}, {"g": load_file(path / f"{group}.safetensors")})


def test_nan_payloads_negative_zero_and_infinities_survive(tmp_path):
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x7FFFFFFF - 1, 1], dtype=torch.int32)
    loaded, state = checkpoint.load(
        checkpoint.save(tmp_path, 1, {"g": {"x": bits.view(torch.float32)}}, {"best": 5e-324})
    )
    assert torch.equal(loaded["g"]["x"].view(torch.int32), bits)
    assert state["best"] == 5e-324


def test_infinite_best_loss_in_the_state_survives(tmp_path):
    _, state = checkpoint.load(checkpoint.save(tmp_path, 1, {}, {"best": float("inf")}))
    assert state["best"] == float("inf")


def test_tied_gradient_tracking_and_conjugated_tensors(tmp_path):
    w = torch.nn.Parameter(torch.randn(4, 4))
    c = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    loaded, _ = checkpoint.load(
        checkpoint.save(tmp_path, 1, {"g": {"a": w, "tied": w, "view": w[1:], "conj": c.conj()}}, {})
    )
    assert torch.equal(loaded["g"]["a"], w)
    assert torch.equal(loaded["g"]["tied"], w)
    assert torch.equal(loaded["g"]["view"], w[1:])
    assert torch.equal(loaded["g"]["conj"], torch.tensor([1 - 2j, 3 + 4j], dtype=torch.complex64))
    loaded["g"]["a"].zero_()
    assert torch.equal(loaded["g"]["tied"], w), "tied tensors come back separate"


def test_no_groups_and_empty_groups(tmp_path):
    loaded, state = checkpoint.load(checkpoint.save(tmp_path, 0, {"none": {}}, {}))
    assert (loaded, state) == ({"none": {}}, {})
    assert checkpoint.load(checkpoint.save(tmp_path, 1, {}, {"x": 1})) == ({}, {"x": 1})


@pytest.mark.parametrize(
    ("tensors", "state", "said"),
    [
        ({"../evil": {}}, {}, "cannot name a group"),
        ({"": {}}, {}, "cannot name a group"),
        ({"g": {"x": torch.zeros(2, 2).to_sparse()}}, {}, "sparse"),
        ({"g": {"x": torch.zeros(2, device="meta")}}, {}, "cannot be stored"),
        ({"g": {"__metadata__": torch.zeros(2)}}, {}, "__metadata__"),
        ({"g": {"x": torch.zeros(2, dtype=torch.complex128)}}, {}, "complex128"),
        ({}, {"a": {1: 2}}, "must be strings, not 1"),
        ({}, {"a": [{"b": {None: 2}}]}, "must be strings, not None"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path, tensors, state, said):
    with pytest.raises(ValueError, match=said):
        checkpoint.save(tmp_path / "new", 1, tensors, state)
    assert not (tmp_path / "new").exists()


def test_state_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "new", 1, {}, {"x": object()})
    assert not (tmp_path / "new").exists()


def test_same_content_gives_the_same_bytes(tmp_path):
    """Time, process and dictionary order leave no trace in the files."""
    tensors, state = content(3)
    backwards = {g: dict(reversed(list(m.items()))) for g, m in tensors.items()}
    a, b = checkpoint.save(tmp_path / "a", 3, tensors, state), checkpoint.save(tmp_path / "b", 3, backwards, state)
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes()


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_newest_is_by_step_number_whatever_the_clock_says(tmp_path):
    """Modification times shuffled ten ways, ±1 day: the same checkpoint each time."""
    save_steps(tmp_path, 9, 10, 100)
    shuffle = random.Random(0)
    for _ in range(10):
        for path in [*tmp_path.iterdir(), *tmp_path.glob("*/*")]:
            when = time.time() + shuffle.uniform(-86400, 86400)
            os.utime(path, (when, when))
        assert newest_step(tmp_path) == 100
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_no_checkpoint_at_all(tmp_path):
    assert newest_step(tmp_path / "missing") is None
    (tmp_path / "unrelated").mkdir()
    (tmp_path / "step-00000001").write_text("a file, not a folder")
    assert newest_step(tmp_path) is None


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def _cut(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def _swap(a: Path, b: Path) -> None:
    x, y = a.read_bytes(), b.read_bytes()
    a.write_bytes(y)
    b.write_bytes(x)


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def _edit_state(path: Path) -> None:
    """Replace the state by another readable one."""
    path.write_text(path.read_text().replace('"step": 20', '"step": 21'))


DAMAGES = {
    "manifest deleted": ("manifest.json", lambda p: p.unlink()),
    "policy deleted": ("policy.safetensors", lambda p: p.unlink()),
    "optimizer deleted": ("optimizer.safetensors", lambda p: p.unlink()),
    "rng deleted": ("rng.safetensors", lambda p: p.unlink()),
    "manifest truncated": ("manifest.json", lambda p: _cut(p, 20)),
    "manifest emptied": ("manifest.json", lambda p: p.write_bytes(b"")),
    "policy truncated": ("policy.safetensors", lambda p: _cut(p, 1)),
    "optimizer emptied": ("optimizer.safetensors", lambda p: p.write_bytes(b"")),
    "policy weight bit": ("policy.safetensors", lambda p: _flip(p, -1)),
    "optimizer header bit": ("optimizer.safetensors", lambda p: _flip(p, 12)),
    "rng bit": ("rng.safetensors", lambda p: _flip(p, -50)),
    "manifest bit": ("manifest.json", lambda p: _flip(p, 40)),
    "state edited": ("manifest.json", _edit_state),
    "bytes appended": ("policy.safetensors", lambda p: p.write_bytes(p.read_bytes() + b"\0")),
    "file of another group": ("optimizer.safetensors", lambda p: _swap(p, p.with_name("policy.safetensors"))),
    "linked away": ("policy.safetensors", _link),
    "a folder in its place": ("rng.safetensors", lambda p: (p.unlink(), p.mkdir())),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_passed_over_and_named(tmp_path, damage):
    save_steps(tmp_path, 10, 20)
    name, hurt = DAMAGES[damage]
    hurt(tmp_path / "step-00000020" / name)
    warnings: list[str] = []
    assert newest_step(tmp_path, warnings) == 10
    (warning,) = warnings
    assert "step-00000020" in warning
    if damage != "file of another group":  # either of the two is a right answer
        assert name in warning
    with pytest.raises(AfzalError, match="damaged"):
        checkpoint.load(tmp_path / "step-00000020")
    loaded, state = checkpoint.load(tmp_path / "step-00000010")
    assert same(loaded, content(10)[0])
    assert state == content(10)[1]


def test_all_damaged_gives_none_and_names_each(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    for path in tmp_path.iterdir():
        _flip(path / "policy.safetensors", -1)
    warnings: list[str] = []
    assert newest_step(tmp_path, warnings) is None
    assert [w.split()[1] for w in warnings] == ["step-00000003", "step-00000002", "step-00000001"]


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path):
    save_steps(tmp_path, 5)
    (tmp_path / "step-00000005").rename(tmp_path / "step-00000050")
    warnings: list[str] = []
    assert newest_step(tmp_path, warnings) is None
    assert "it is of step 5" in warnings[0]


def test_a_later_format_is_passed_over_without_calling_it_damaged(tmp_path):
    save_steps(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["format"] = 99
    path.write_text(json.dumps(manifest | {"sha256": digest(manifest)}))
    warnings: list[str] = []
    assert newest_step(tmp_path, warnings) == 1
    assert "format 99" in warnings[0]
    assert "damaged" not in warnings[0]


def test_manifest_may_not_name_files_outside(tmp_path):
    save_steps(tmp_path, 1)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((tmp_path / "step-00000001" / "rng.safetensors").read_bytes())
    path = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["files"]["../outside.safetensors"] = manifest["files"]["rng.safetensors"]
    path.write_text(json.dumps(manifest | {"sha256": digest(manifest)}))
    with pytest.raises(AfzalError) as caught:
        checkpoint.load(tmp_path / "step-00000001")
    assert "../outside.safetensors" in str(caught.value)


# --- keeping and replacing --------------------------------------------------------------------------------------------


def test_prune_keeps_the_highest_steps_and_clears_rubbish(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4)
    (tmp_path / ".tmp-step-00000005").mkdir()
    (tmp_path / ".tmp-step-00000005" / "policy.safetensors").write_bytes(b"half")
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    with pytest.raises(ValueError, match="at least 1"):
        checkpoint.prune(tmp_path, 0)


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 5, *content(1))
    checkpoint.save(tmp_path, 5, *content(2))
    assert same(checkpoint.load(tmp_path / "step-00000005")[0], content(2)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def test_saving_an_earlier_step_gives_up_the_later_ones(tmp_path):
    """After falling back from a damaged 20 to 10, the 15 that follows is the newest, and prune does not drop it."""
    save_steps(tmp_path, 10, 20)
    _flip(tmp_path / "step-00000020" / "policy.safetensors", -1)
    save_steps(tmp_path, 15)
    checkpoint.prune(tmp_path, 1)
    assert newest_step(tmp_path) == 15


def test_a_kill_between_setting_aside_and_replacing_loses_nothing(tmp_path, monkeypatch):
    save_steps(tmp_path, 5)
    real, calls = os.replace, []

    def dies_at_second(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise MemoryError  # in place of a kill: nothing runs after it except the clean-up of the temporary folder
        real(a, b)

    monkeypatch.setattr(os, "replace", dies_at_second)
    with pytest.raises(MemoryError):
        checkpoint.save(tmp_path, 5, *content(6))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [".replaced-step-00000005"]
    path = checkpoint.newest(tmp_path, pytest.fail)
    assert path is not None
    assert same(checkpoint.load(path)[0], content(5)[0])
    save_steps(tmp_path, 6)
    assert newest_step(tmp_path) == 6
    checkpoint.prune(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000006"]


# --- order of writes --------------------------------------------------------------------------------------------------


def test_every_file_is_forced_to_disk_before_the_rename(tmp_path, monkeypatch):
    """Order: every file written and synced, the manifest last, their folder synced, renamed, the parent synced."""
    events: list[tuple[str, str]] = []
    real_write, real_fsync, real_replace = os.write, os.fsync, os.replace

    def name(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def write(descriptor, data):
        events.append(("write", name(descriptor)))
        return real_write(descriptor, data)

    def fsync(descriptor):
        events.append(("fsync", name(descriptor)))
        return real_fsync(descriptor)

    def replace(a, b):
        events.append(("replace", Path(b).name))
        return real_replace(a, b)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 3, *content(3))
    monkeypatch.undo()

    files = ["policy.safetensors", "optimizer.safetensors", "rng.safetensors", "manifest.json"]
    synced = [what for kind, what in events if kind == "fsync"]
    assert synced == [*files, ".tmp-step-00000003", "checkpoints"]
    assert events[-2:] == [("replace", "step-00000003"), ("fsync", "checkpoints")]
    for file in files:
        last_write = max(i for i, event in enumerate(events) if event == ("write", file))
        assert last_write < events.index(("fsync", file))


# --- a disk that fills ------------------------------------------------------------------------------------------------


def _budget(monkeypatch, n_bytes: int, code: int = errno.ENOSPC) -> None:
    """``os.write`` as a disk with ``n_bytes`` left serves it: short writes, then the error."""
    real, left = os.write, [n_bytes]

    def write(descriptor, data):
        if left[0] == 0:
            raise OSError(code, os.strerror(code))
        written = real(descriptor, memoryview(data)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_disk_full_at_30_offsets_leaves_the_checkpoint_before_and_says_so(tmp_path, monkeypatch, code):
    save_steps(tmp_path, 1)
    before = {f.name: f.read_bytes() for f in (tmp_path / "step-00000001").iterdir()}
    whole = _size(tmp_path / "step-00000001")
    tensors, state = content(2)
    wanted = sum(t.numel() * t.element_size() for g in tensors.values() for t in g.values())
    for offset in [whole * k // 30 for k in range(30)]:
        _budget(monkeypatch, offset, code)
        with pytest.raises(AfzalError) as caught:
            checkpoint.save(tmp_path, 2, tensors, state)
        monkeypatch.undo()
        said = str(caught.value)
        assert str(tmp_path / "step-00000002") in said
        assert f"{wanted} bytes" in said
        assert "try:" in said
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"], offset
        assert {f.name: f.read_bytes() for f in (tmp_path / "step-00000001").iterdir()} == before
        assert newest_step(tmp_path) == 1
    checkpoint.save(tmp_path, 2, tensors, state)
    assert same(checkpoint.load(tmp_path / "step-00000002")[0], tensors)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True, capture_output=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, timeout=20)


def test_real_full_disk_at_30_sizes(small_disk):
    """The kernel's own ENOSPC: 30 amounts of ballast leave too little space; without it the save succeeds."""
    folder = small_disk / "checkpoints"
    tensors = {"policy": {f"w{i}": torch.full((1024,), float(i)) for i in range(20)}}  # 80 KiB
    checkpoint.save(folder, 1, tensors, {"k": 1})
    for k in range(30):
        ballast = small_disk / "ballast"
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(b"x" * (free - k * 2800 // 4096 * 4096))
        with pytest.raises(AfzalError, match="disk is full") as caught:
            checkpoint.save(folder, 2, tensors, {"k": 2})
        assert str(folder / "step-00000002") in str(caught.value)
        assert "81920 bytes" in str(caught.value)
        assert [p.name for p in folder.iterdir()] == ["step-00000001"]
        assert newest_step(folder) == 1
        ballast.unlink()
    checkpoint.save(folder, 2, tensors, {"k": 2})
    assert checkpoint.load(folder / "step-00000002")[1] == {"k": 2}


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def _save_for_ever(folder: Path, acknowledge: int) -> None:
    start = checkpoint.newest(folder, lambda _: None)
    step = checkpoint.step_of(start) if start else 0
    while True:
        step += 1
        checkpoint.save(folder, step, *content(step))
        os.write(acknowledge, step.to_bytes(4, "little"))
        checkpoint.prune(folder, 2)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_20_random_times_never_costs_an_acknowledged_checkpoint(tmp_path):
    chance = random.Random(0)
    reached = 0
    for _ in range(20):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _save_for_ever(tmp_path, write)
            finally:
                os._exit(1)
        os.close(write)
        first = os.read(read, 4)  # it has started
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rest = first + os.read(read, 1 << 20)
        os.close(read)
        reached = int.from_bytes(rest[-4:], "little")
        newest = newest_step(tmp_path)  # asserts that no checkpoint had to be skipped
        assert newest is not None
        assert newest >= reached
        loaded, state = checkpoint.load(tmp_path / f"step-{newest:08d}")
        assert same(loaded, content(newest)[0])
        assert state["step"] == newest
    assert reached >= 20


@pytest.mark.parametrize("fused", [True, False])
def test_a_fused_optimiser_gets_its_step_count_on_the_parameters_device(fused: bool):
    """Its GPU kernel refuses a step count on the host; the other implementations count on the host."""
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.AdamW([parameter], lr=0.0, foreach=True)
    optimizer.param_groups[0]["fused"] = fused
    optimizer_slots(optimizer, {"w": parameter}, {"w|step": (), "w|exp_avg": (2,)})
    assert optimizer.state[parameter]["step"].device.type == ("meta" if fused else "cpu")
    assert optimizer.state[parameter]["exp_avg"].device.type == "meta"
