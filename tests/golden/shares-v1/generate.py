"""Shares of slot keys as docs/formats.md describes them, made without any of narvault's code: `python3 generate.py >
shares.json`. The file is never made anew; a later format gets a folder of its own."""

import base64
import hashlib
import hmac
import json


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


def split(cluster_id, slot_id, k, n):
    label = f"{cluster_id} {slot_id} {k} {n}"
    key, split_id = stream(label + " key", 32), stream(label + " split", 4)
    random = stream(label + " coefficients", 32 * (k - 1))
    coefficients = [[key[i], *random[i * (k - 1) : (i + 1) * (k - 1)]] for i in range(32)]
    home = tag(cluster_id) + tag(slot_id) + split_id
    points = [bytes(evaluate(byte, x) for byte in coefficients) for x in range(1, n + 1)]
    return {
        "cluster_id": cluster_id,
        "slot_id": slot_id,
        "params": f"v=1,k={k},n={n},split={split_id.hex()}",
        "slot_key": key.hex(),
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
