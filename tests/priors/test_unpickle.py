"""The payloads here would create a file if anything of theirs ran."""

import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from scbig import priors
from scbig.errors import InputError

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(4, dtype=">i4"),
    "text": np.array(["ab", "c"]),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float16),
    "scalar": np.float64(2.5),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    whole = {
        "arrays": ARRAYS,
        "list": [1, 2.5, "x", None, (True, b"y")],
        "ordered": collections.OrderedDict(a=[1]),
    }
    path.write_bytes(pickle.dumps(whole, protocol))
    found = priors.read_pickle(path)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found["arrays"][name], array)
        assert found["arrays"][name].dtype == array.dtype
    assert found["list"] == whole["list"]
    assert found["ordered"] == {"a": [1]}


def test_arrays_of_objects_become_lists(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(np.array([np.ones(2), "x"], object)))
    found = priors.read_pickle(path)
    np.testing.assert_array_equal(found[0], np.ones(2))
    assert found[1] == "x"


def test_arrays_written_by_old_numpy(tmp_path):
    path = tmp_path / "a.pkl"
    data = pickle.dumps({"g": np.arange(3.0)}, 2)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(priors.read_pickle(path)["g"], np.arange(3.0))


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def raw(*lines: bytes) -> bytes:
    return b"".join(lines)


def attacks(flag):
    command = f"touch {flag}"
    yield "posix.system", pickle.dumps({"A": Payload(os.system, command)})
    yield "os.system", raw(b"cos\nsystem\n(S'", command.encode(), b"'\ntR.")
    yield "builtins.eval", pickle.dumps(Payload(eval, f"open({str(flag)!r}, 'w')"))
    yield "builtins.getattr", pickle.dumps(Payload(getattr, "x", "upper"))
    yield "subprocess.Popen", raw(b"csubprocess\nPopen\n((S'touch'\nS'", str(flag).encode(), b"'\nltR.")
    # The same through the opcodes that find and call at once.
    yield "os.system", raw(b"(S'", command.encode(), b"'\nios\nsystem\n.")
    # A dotted name that begins like an allowed one.
    yield "numpy.ndarray.tofile", raw(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    # Our own names must not be reachable by theirs.
    yield "scbig.priors.unpickle.os", raw(b"cscbig.priors.unpickle\nos\n.")
    yield "torch.storage._load_from_bytes", raw(b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.")


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("ending", ["pkl", "pt"])
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(tmp_path, number, ending):
    flag = tmp_path / "executed"
    name, data = list(attacks(flag))[number]
    path = tmp_path / f"evil.{ending}"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        priors.read_embedding(path)
    assert name in str(error.value)
    assert str(path) in str(error.value)
    assert not flag.exists()


def test_the_attack_works_on_an_unrestricted_reader(tmp_path):
    flag = tmp_path / "executed"
    pickle.loads(next(attacks(flag))[1])
    assert flag.exists()


def test_a_malicious_archive_is_refused(tmp_path):
    flag = tmp_path / "executed"
    path = tmp_path / "evil.pt"
    write_archive(path, pickle.dumps({"A": Payload(os.system, f"touch {flag}")}), {})
    with pytest.raises(InputError, match="system"):
        priors.read_embedding(path)
    assert not flag.exists()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        # BUILD on an allowed name would change the reader itself for later files.
        (b"cnumpy\ndtype\n}S'_function'\nNsb.", "evil.pkl"),
        (b"\x80\x02cnumpy\ndtype\nN}S'_function'\nNs\x86b.", "evil.pkl"),
        # Codecs of the standard library other than the one that bytes need.
        (b"c_codecs\nencode\n(Vabc\nS'rot13'\ntR.", "latin1"),
        # An array of a class that is not numpy's own, or that is larger than its bytes.
        (b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "class other than"),
        (
            b"cnumpy._core.numeric\n_frombuffer\n(S'ab'\ncnumpy\ndtype\n(S'f8'\ntR(I1000000\ntS'C'\ntR.",
            "1000000 numbers from 2 bytes",
        ),
        (b"cnumpy\nndarray\n.", "type in place of data"),
        (b"cnumpy\ndtype\n(S'f8'\ntR.", "type in place of data"),
        (b"Pxyz\n.", "persistent identifier"),
        (b"not a pickle", "no pickle"),
        (pickle.dumps({"A": list(range(100))})[:40], "truncated"),
    ],
)
def test_crafted_pickles_are_refused(tmp_path, data, told):
    path = tmp_path / "evil.pkl"
    path.write_bytes(data)
    with pytest.raises(InputError, match=told):
        priors.read_pickle(path)
    good = tmp_path / "good.pkl"
    good.write_bytes(pickle.dumps({"A": np.ones(2)}))
    np.testing.assert_array_equal(priors.read_pickle(good)["A"], np.ones(2))


def test_a_container_that_holds_itself_is_refused(tmp_path):
    path = tmp_path / "loop.pkl"
    loop: list = [np.ones(1)]
    loop.append(loop)
    path.write_bytes(pickle.dumps(loop))
    with pytest.raises(InputError, match=r"loop\.pkl.*nested"):
        priors.read_pickle(path)


# PyTorch's files, made by hand since PyTorch is not needed


class Name:
    """Pickles as a global that need not exist here."""

    def __init__(self, name):
        self.name = name


class Storage:
    def __init__(self, kind, key, count):
        self.parts = kind, key, count


class Tensor:
    def __init__(self, storage, offset, size, stride):
        self.parts = storage, offset, size, stride


class TorchPickler(pickle._Pickler):
    """Writes what torch.save writes: globals by name, storages by persistent identifier."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind, key, count = obj.parts
            return ("storage", Name(f"torch {kind}"), key, "cpu", count)
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Name):
            module, name = obj.name.split()
            self.write(f"c{module}\n{name}\n".encode())
            return None
        if isinstance(obj, Tensor):
            storage, offset, size, stride = obj.parts
            self.save(Name("torch._utils _rebuild_tensor_v2"))
            self.save((storage, offset, size, stride, False, collections.OrderedDict()))
            self.write(pickle.REDUCE)
            return None
        return super().save(obj, save_persistent_id)


def torch_pickle(content) -> bytes:
    buffer = io.BytesIO()
    TorchPickler(buffer, 2).dump(content)
    return buffer.getvalue()


def write_archive(path, data: bytes, storages: dict[str, bytes], method=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("ESM2_pert_features/data.pkl", data)
        archive.writestr("ESM2_pert_features/byteorder", order)
        for key, content in storages.items():
            archive.writestr(f"ESM2_pert_features/data/{key}", content)
        archive.writestr("ESM2_pert_features/version", b"3\n")


def vector(kind, key, count):
    return Tensor(Storage(kind, key, count), 0, (count,), (1,))


def test_esm2_dictionary(tmp_path):
    path = tmp_path / "ESM2_pert_features.pt"
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    content = {name: vector("FloatStorage", str(i), 5) for i, name in enumerate(("TP53", "MYC", "CEBPA"))}
    write_archive(path, torch_pickle(content), {str(i): row.tobytes() for i, row in enumerate(rows)})
    found = priors.read_embedding(path)
    assert found.genes == ("TP53", "MYC", "CEBPA")
    np.testing.assert_array_equal(found.vectors, rows)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("DoubleStorage", "f8"), ("HalfStorage", "f2"), ("LongStorage", "i8"), ("ByteStorage", "u1")],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_storage_types_and_byte_orders(tmp_path, kind, dtype, order):
    path = tmp_path / "a.pt"
    values = np.array([1, 2, 250], dtype)
    stored = values.astype(values.dtype.newbyteorder("<" if order == "little" else ">")).tobytes()
    write_archive(path, torch_pickle({"A": vector(kind, "0", 3)}), {"0": stored}, order=order.encode())
    np.testing.assert_array_equal(priors.read_torch(path)["A"], values)


def test_bfloat16(tmp_path):
    path = tmp_path / "a.pt"
    values = [1.0, -2.5, 0.15625]
    halves = b"".join(struct.pack("<f", value)[2:] for value in values)
    write_archive(path, torch_pickle({"A": vector("BFloat16Storage", "0", 3)}), {"0": halves})
    np.testing.assert_array_equal(priors.read_torch(path)["A"], np.array(values, np.float32))


def test_views_share_a_storage_and_strides_are_followed(tmp_path):
    path = tmp_path / "a.pt"
    base = np.arange(12, dtype=np.float32)
    storage = Storage("FloatStorage", "0", 12)
    content = {
        "row": Tensor(storage, 4, (4,), (1,)),
        "column": Tensor(storage, 1, (3,), (4,)),
        "transposed": Tensor(storage, 0, (4, 3), (1, 4)),
        "none": Tensor(storage, 0, (0, 4), (4, 1)),
    }
    write_archive(path, torch_pickle(content), {"0": base.tobytes()})
    found, matrix = priors.read_torch(path), base.reshape(3, 4)
    np.testing.assert_array_equal(found["row"], matrix[1])
    np.testing.assert_array_equal(found["column"], matrix[:, 1])
    np.testing.assert_array_equal(found["transposed"], matrix.T)
    assert found["none"].shape == (0, 4)
    found["row"][:] = 0
    np.testing.assert_array_equal(found["column"], matrix[:, 1])


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (Tensor(Storage("FloatStorage", "0", 4), 2, (4,), (1,)), "up to place 5 of a storage of 4"),
        (Tensor(Storage("FloatStorage", "0", 4), 0, (2, 2), (3, 3)), "up to place 6"),
        (Tensor(Storage("FloatStorage", "0", 4), 0, (10**12,), (0,)), "1000000000000 numbers"),
        (Tensor(Storage("FloatStorage", "0", 4), -1, (2,), (1,)), "no whole number"),
        (Tensor(Storage("FloatStorage", "0", 4), 3, (2,), (-1,)), "no whole number"),
        (Tensor(Storage("FloatStorage", "0", 99), 0, (2,), (1,)), "99 numbers"),
        (Tensor(Storage("FloatStorage", "7", 4), 0, (2,), (1,)), "data/7, which the file lacks"),
        (Tensor(Storage("QInt8Storage", "0", 4), 0, (2,), (1,)), "torch.QInt8Storage"),
    ],
)
def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path, tensor, told):
    path = tmp_path / "bad.pt"
    write_archive(path, torch_pickle({"A": tensor}), {"0": np.ones(4, np.float32).tobytes()})
    with pytest.raises(InputError, match=told) as error:
        priors.read_torch(path)
    assert str(path) in str(error.value)


def test_other_archives_are_refused(tmp_path):
    path = tmp_path / "bad.pt"
    good = torch_pickle({"A": vector("FloatStorage", "0", 4)}), {"0": np.ones(4, np.float32).tobytes()}
    write_archive(path, *good, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"bad\.pt.*compressed"):
        priors.read_torch(path)
    write_archive(path, *good, order=b"middle")
    with pytest.raises(InputError, match="byte order"):
        priors.read_torch(path)
    write_archive(path, *good)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="truncated"):
        priors.read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    with pytest.raises(InputError, match="not PyTorch's"):
        priors.read_torch(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "bad.pt"
    values = np.full(64, 1.2345, np.float32).tobytes()
    write_archive(path, torch_pickle({"A": vector("FloatStorage", "0", 64)}), {"0": values})
    data = bytearray(path.read_bytes())
    data[data.index(values) + 100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"corrupt.*CRC"):
        priors.read_torch(path)


@pytest.mark.parametrize("ending", ["pt", "pkl"])
def test_the_format_before_1_6_is_refused_with_advice(tmp_path, ending):
    path = tmp_path / f"old.{ending}"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    with pytest.raises(InputError, match=r"old\..*before 1\.6"):
        priors.read_embedding(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, for type codes that chance makes
def test_chance_damage_never_gives_more_than_a_refusal(tmp_path):
    rng = np.random.default_rng(0)
    path, flag = tmp_path / "a.pkl", tmp_path / "executed"
    seeds = [pickle.dumps({"arrays": ARRAYS, "x": [1, "y"]}, protocol) for protocol in (0, 2, 4, 5)]
    seeds += [data for _, data in attacks(flag)]
    refused = 0
    for _ in range(1500):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        path.write_bytes(bytes(data))
        try:
            priors.read_pickle(path)
        except InputError:
            refused += 1
    assert refused > 500
    assert not flag.exists()
