"""Drop the GPU code of every architecture but one in a shared library's .nv_fatbin section.

    python prune.py IN.so OUT.so [ARCH=90] [--zero]

.nv_fatbin is a row of containers: a header (u32 magic 0xBA55ED50, u16 version, u16 header size,
u64 size of what follows) and entries of u16 kind (1 PTX, 2 ELF), u16 version, u32 header size,
u64 padded payload size, u32 compressed size, u32, u16 minor, u16 major, u32 arch, ...

The kept entries move to the front of their container, its size field shrinks and the rest becomes
zeros: what ``nvcc -arch=sm_90`` alone would have written, and ``cuobjdump --list-elf`` reads it.
``--zero`` leaves every entry where it is and only zeros the payloads of the others; cuobjdump then
calls the file invalid, since their headers still promise an ELF. Neither changes the file's size
or any address.
"""

import struct
import sys

MAGIC = 0xBA55ED50


def sections(data):
    (shoff,) = struct.unpack_from("<Q", data, 0x28)
    count, strings = struct.unpack_from("<HH", data, 0x3C)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + 64 * i) for i in range(count)]
    names = heads[strings][4]
    for head in heads:
        start = names + head[0]
        yield bytes(data[start : data.index(b"\0", start)]).decode(), head[3], head[4], head[5]


def containers(data, offset, size):
    """(start of container, header size, [(start, length, header length, kind, arch)])."""
    at, end = offset, offset + size
    while at < end:
        magic, _, head, length = struct.unpack_from("<IHHQ", data, at)
        if magic != MAGIC:
            if any(data[at : at + 8]):
                raise ValueError(f"no fatbin header at {at:#x}")
            at += 8
            continue
        entries, entry = [], at + head
        while entry < at + head + length:
            kind, _, entry_head, payload = struct.unpack_from("<HHIQ", data, entry)
            (arch,) = struct.unpack_from("<I", data, entry + 28)
            entries.append((entry, entry_head + payload, entry_head, kind, arch))
            entry += entry_head + payload
        if entry != at + head + length:
            raise ValueError(f"entries of the container at {at:#x} overrun it")
        yield at, head, entries
        at = entry


def prune(data, arch=90, compact=True):
    """In place on a bytearray; returns (kept bytes, zeroed bytes, containers)."""
    found = {name: (addr, offset, size) for name, addr, offset, size in sections(data)}
    if ".nv_fatbin" not in found:
        return 0, 0, 0
    addr, offset, size = found[".nv_fatbin"]
    boxes = list(containers(data, offset, size))
    if ".nvFatBinSegment" in found:  # every registered container must be one that was parsed
        _, at, length = found[".nvFatBinSegment"]
        known = {addr + start - offset for start, _, _ in boxes}
        for i in range(at, at + length, 24):
            if struct.unpack_from("<Q", data, i + 8)[0] not in known:
                raise ValueError("a registered container was not found")
    kept = zeroed = 0
    for start, head, entries in boxes:
        keep = [e for e in entries if e[3] == 2 and e[4] == arch]
        if not keep:
            raise ValueError(f"container at {start:#x} has no ELF for sm_{arch}")
        kept += sum(e[1] for e in keep)
        if compact:
            body = b"".join(bytes(data[e[0] : e[0] + e[1]]) for e in keep)
            total = sum(e[1] for e in entries)
            data[start + head : start + head + total] = body + bytes(total - len(body))
            struct.pack_into("<Q", data, start + 8, len(body))
            zeroed += total - len(body)
        else:
            for entry, length, entry_head, kind, entry_arch in entries:
                if not (kind == 2 and entry_arch == arch):
                    data[entry + entry_head : entry + length] = bytes(length - entry_head)
                    zeroed += length - entry_head
    return kept, zeroed, len(boxes)


if __name__ == "__main__":
    words = [w for w in sys.argv[1:] if w != "--zero"]
    with open(words[0], "rb") as file:
        data = bytearray(file.read())
    arch = int(words[2]) if len(words) > 2 else 90
    kept, zeroed, boxes = prune(data, arch, "--zero" not in sys.argv)
    with open(words[1], "wb") as file:
        file.write(data)
    print(f"{words[1]}: {boxes} containers, kept {kept} bytes of sm_{arch}, zeroed {zeroed}")
