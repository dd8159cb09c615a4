"""Checks that a screenshot (PNG, 8 bits, RGB or RGBA) is light or dark, and shows something:
look.py PICTURE.png light|dark"""

import struct
import sys
import zlib


def rows(path):
    """Each row's bytes, and the bytes of a pixel."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        sys.exit(f"{path} is no PNG")
    at, packed, width, channels = 8, b"", 0, 3
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colour = struct.unpack(">IIBB", body[:10])
            if depth != 8 or colour not in (2, 6):
                sys.exit(f"{path}: colour type {colour} with {depth} bits is not expected")
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    flat, stride = zlib.decompress(packed), width * channels
    last = bytearray(stride)
    for start in range(0, len(flat), stride + 1):
        row, filtering = bytearray(flat[start + 1 : start + 1 + stride]), flat[start]
        for i in range(stride) if filtering else ():
            left = row[i - channels] if i >= channels else 0
            corner = last[i - channels] if i >= channels else 0
            up = last[i]
            if filtering == 1:
                guess = left
            elif filtering == 2:
                guess = up
            elif filtering == 3:
                guess = (left + up) // 2
            else:
                base = left + up - corner
                guess = min((left, up, corner), key=lambda value: abs(base - value))
            row[i] = (row[i] + guess) & 255
        last = row
        yield row, channels


path, kind = sys.argv[1:]
total, count, colours = 0, 0, set()
for number, (row, channels) in enumerate(rows(path)):
    if number % 4 == 0:
        for i in range(0, len(row) - channels + 1, channels * 4):
            pixel = bytes(row[i : i + 3])
            total += sum(pixel)
            count += 3
            colours.add(pixel)
brightness = total / max(count, 1)
print(f"{path}: brightness {brightness:.0f} of 255, {len(colours)} colours")
if len(colours) < 50:
    sys.exit(f"{path}: blank or nearly so")
if (brightness > 150) != (kind == "light"):
    sys.exit(f"{path}: not {kind}")
