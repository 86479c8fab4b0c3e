"""The model file: what is written is read back, and damage is named."""

import json

import numpy as np
import pytest

from diffusim import model_file

HARMONIC = model_file.ModelFile(
    kind="harmonic",
    n_particles=3,
    training_temperature=277.0,
    hyperparameters={"stiffness": 41.0},
    largest_curvature=41.0,
)


def test_an_analytic_model_is_a_header_without_tensors(tmp_path):
    written = model_file.write(tmp_path / "well.safetensors", HARMONIC)
    assert model_file.read(tmp_path / "well.safetensors") == written
    assert written.weights_sha256 == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes
    assert model_file.read_tensors(tmp_path / "well.safetensors") == {}


def test_tensors_are_float32_and_guarded_by_their_sha256(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"b": np.arange(7.0), "a": np.linspace(0.3, 2.0, 15).reshape(5, 3)}
    model_file.write(path, HARMONIC, tensors)
    read = model_file.read_tensors(path)
    assert {name: (a.dtype, a.shape) for name, a in read.items()} == {
        "a": (np.float32, (5, 3)),
        "b": (np.float32, (7,)),
    }
    np.testing.assert_array_equal(read["a"], tensors["a"].astype(np.float32))

    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(model_file.ModelFileError, match="do not match the sha256"):
        model_file.read_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    model_file.write(path, HARMONIC)
    before = path.read_bytes()
    with pytest.raises(model_file.ModelFileError, match="tensor w has values that are not finite"):
        model_file.write(path, HARMONIC, {"w": np.array([0.3, np.nan])})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "does not start like a safetensors file"),
        (b"\xff" * 40, "does not start like a safetensors file"),
        ((900).to_bytes(8, "little") + b"{}", "no 'diffusim' metadata"),
        ((2).to_bytes(8, "little") + b"{}", "no 'diffusim' metadata"),
        ((2).to_bytes(8, "little") + b"[]", "no 'diffusim' metadata"),
    ],
)
def test_a_file_that_is_no_model_file_is_refused(data, match, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(model_file.ModelFileError, match=match):
        model_file.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"format_version": 2}, "format version 2; this diffusim reads version 1"),
        ([], "format version None"),
        ({"format_version": 1, "kind": "harmonic"}, "header that diffusim cannot read"),
        ({"format_version": 1, "particles": [{"name": "CA"}]}, "header that diffusim cannot read"),
    ],
)
def test_a_header_of_another_version_or_shape_is_refused(entry, match, tmp_path):
    header = json.dumps({"__metadata__": {"diffusim": json.dumps(entry)}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(model_file.ModelFileError, match=match):
        model_file.read(tmp_path / "a.safetensors")
