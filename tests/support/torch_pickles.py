"""Files as torch.save writes them, made without torch, so that their numbers may be wrong."""

import io
import pickle
import struct
import zipfile


def _text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number):
    return b"J" + struct.pack("<i", number)


def _numbers(numbers):
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def pickled_tensor(key, size, offset, shape, strides):
    """Return the instructions that make a float32 tensor over `size` numbers of storage `key`."""
    where = _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu")
    storage = b"(" + where + _number(size) + b"tQ"
    numbers = _number(offset) + _numbers(shape) + _numbers(strides)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89" + hooks + b"tR"


def pickled_dict(tensors):
    """Return the pickle of a dict from names to `pickled_tensor`s."""
    items = b"".join(_text(name) + tensor for name, tensor in tensors.items())
    return b"\x80\x02}(" + items + b"u."


def zip_file(program, storages):
    """Return a file of torch >= 1.6: a pickle, and the bytes of storages by key."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), program)
        for key, data in storages.items():
            archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), data)
    return out.getvalue()


def stream_file(program, storages):
    """Return a file of torch < 1.6: pickles one after another, then float32 storages by key."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    numbers = [struct.pack("<q", len(data) // 4) + data for data in storages.values()]
    return b"".join([*head, program, pickle.dumps(list(storages), 2), *numbers])
