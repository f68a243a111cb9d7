"""Slots that shares open, as docs/formats.md describes them, made without any of narvault's code: `python3 generate.py >
shares.json`. The file is never made anew; a later format gets a folder of its own."""

import base64
import hashlib
import hmac
import json
import struct


def multiply(a, b):
    """In GF(256) with the polynomial of AES."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def evaluate(coefficients, x):
    value = 0
    for coefficient in reversed(coefficients):
        value = multiply(value, x) ^ coefficient
    return value


def stream(label, length):
    """Bytes that look random and are the same each time."""
    return hashlib.shake_256(b"narvault golden shares " + label.encode()).digest(length)


def tag(text):
    return hashlib.sha256(text.encode()).digest()[:4]


def share(home, k, n, x, y):
    body = bytes([1]) + home + bytes([k, n, x]) + y
    checksum = hashlib.sha256(body).digest()[:4]
    return "nvs1-" + base64.b32encode(body + checksum).decode().rstrip("=").lower()


def rounds(state):
    """The 20 rounds of ChaCha (RFC 8439, section 2.3), without the addition at their end."""
    x = list(state)

    def quarter(a, b, c, d):
        for one, other, third, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[one] = (x[one] + x[other]) & 0xFFFFFFFF
            x[third] ^= x[one]
            x[third] = (x[third] << turn | x[third] >> 32 - turn) & 0xFFFFFFFF

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return x


CONSTANT = struct.unpack("<4I", b"expand 32-byte k")


def chacha20_block(key, counter, nonce):
    state = [*CONSTANT, *struct.unpack("<8I", key), counter, *struct.unpack("<3I", nonce)]
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(rounds(state), state)))


def poly1305(key, message):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at : at + 16] + b"\x01", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def xchacha20_poly1305(key, nonce, text, associated_data):
    """Of a text of at most one block (draft-irtf-cfrg-xchacha-03)."""
    derived = rounds([*CONSTANT, *struct.unpack("<8I", key), *struct.unpack("<4I", nonce[:16])])
    subkey, nonce = struct.pack("<8I", *derived[:4], *derived[12:]), bytes(4) + nonce[16:]
    ciphertext = bytes(a ^ b for a, b in zip(text, chacha20_block(subkey, 1, nonce)))
    padded = lambda part: part + bytes(-len(part) % 16)
    lengths = struct.pack("<QQ", len(associated_data), len(ciphertext))
    tag = poly1305(chacha20_block(subkey, 0, nonce)[:32], padded(associated_data) + padded(ciphertext) + lengths)
    return ciphertext + tag


def wrapped(root, slot_key, cluster_id, slot_id, params, nonce):
    fields = [cluster_id, "vault_slots", slot_id, "", "", "root", "", "", "0", "1", "shamir", params]
    encoded = b"".join(struct.pack(">I", len(field)) + field.encode() for field in fields)
    prk = hmac.digest(bytes(32), slot_key, "sha256")
    key = hmac.digest(prk, b"narvault/v1/seal\x01", "sha256")
    return bytes([1, 1, 0, 0, 0, 0]) + nonce + xchacha20_poly1305(key, nonce, root, b"narvault/v1\0" + encoded)


def split(cluster_id, slot_id, k, n):
    label = f"{cluster_id} {slot_id} {k} {n}"
    key, split_id = stream(label + " key", 32), stream(label + " split", 4)
    random = stream(label + " coefficients", 32 * (k - 1))
    coefficients = [[key[i], *random[i * (k - 1) : (i + 1) * (k - 1)]] for i in range(32)]
    home = tag(cluster_id) + tag(slot_id) + split_id
    params = f"v=1,k={k},n={n},split={split_id.hex()}"
    root, nonce = stream(label + " root", 32), stream(label + " nonce", 24)
    points = [bytes(evaluate(byte, x) for byte in coefficients) for x in range(1, n + 1)]
    return {
        "cluster_id": cluster_id,
        "slot_id": slot_id,
        "params": params,
        "slot_key": key.hex(),
        "root": root.hex(),
        "wrapped_root": wrapped(root, key, cluster_id, slot_id, params, nonce).hex(),
        # HKDF-Expand of 32 bytes: one block.
        "kcv": hmac.new(key, b"narvault/v1/kcv\x01", "sha256").hexdigest(),
        "shares": [share(home, k, n, x, points[x - 1]) for x in range(1, n + 1)],
    }


cluster = "k3x7qa2m5b9d4f6h"
print(
    json.dumps(
        [
            split(cluster, "019aabcd-1234-7abc-8def-0123456789ab", 2, 2),
            split(cluster, "019aabcd-1234-7abc-8def-0123456789ac", 3, 5),
            split("another", "019aabcd-1234-7abc-8def-0123456789ab", 4, 7),
        ],
        indent=2,
    )
)
