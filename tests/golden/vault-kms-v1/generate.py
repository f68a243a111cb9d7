"""Writes slot.json: a slot of a key in KMS for the vault in ../vault-v1, by another implementation of docs/formats.md.

Needs the package `cryptography`. Run once; the file is never made anew, since what format 1 sealed must open for ever.
"""
import base64
import hashlib
import hmac
import json
import pathlib
import struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

HERE = pathlib.Path(__file__).parent
SLOT_KEY = bytes(range(64, 96))
NONCE = bytes(range(100, 124))
SLOT_ID = "0193a1b2-0000-7000-8000-000000000003"
ARN = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def rotl(value, bits):
    return ((value << bits) | (value >> (32 - bits))) & 0xFFFFFFFF


def hchacha20(key, nonce):
    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))

    def quarter(a, b, c, d):
        for left, right, bits in ((a, b, 16), (c, d, 12), (a, b, 8), (c, d, 7)):
            state[left] = (state[left] + state[right]) & 0xFFFFFFFF
            other = d if left == a else b
            state[other] = rotl(state[other] ^ state[left], bits)

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(a, b, c, d)
    return struct.pack("<8I", *state[:4], *state[12:])


def cipher(secret, nonce):
    """XChaCha20-Poly1305 with the key that HKDF-SHA256 makes of `secret`, and the rest of the nonce."""
    key = expand(hmac.digest(bytes(32), secret, "sha256"), b"narvault/v1/seal")
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])), bytes(4) + nonce[16:]


def expand(key, info):
    return hmac.new(key, info + b"\1", hashlib.sha256).digest()


def associated_data(cluster, slot_id, kind, params):
    fields = [cluster, "vault_slots", slot_id, "", "", "root", "", "", "0", "1", kind, params]
    lines = (struct.pack(">I", len(field)) + field.encode() for field in fields)
    return b"narvault/v1\0" + b"".join(lines)


def main():
    vault = json.loads((HERE / "../vault-v1/vault.json").read_text())
    cluster, file = vault["cluster_id"], next(slot for slot in vault["slots"] if slot["kind"] == "key-file")
    wrapped = bytes.fromhex(file["wrapped_root"])
    opener, nonce = cipher(bytes.fromhex(vault["key_file"]), wrapped[6:30])
    root = opener.decrypt(nonce, wrapped[30:], associated_data(cluster, file["id"], "key-file", ""))

    ciphertext = hashlib.shake_256(b"what a service made of the slot key").digest(184)
    params = f"$kms$v=1$k={ARN}${base64.b64encode(ciphertext).decode().rstrip('=')}"
    sealer, nonce = cipher(SLOT_KEY, NONCE)
    sealed = sealer.encrypt(nonce, root, associated_data(cluster, SLOT_ID, "kms", params))
    record = bytes([1, 1, 0, 0, 0, 0]) + NONCE + sealed
    slot = {
        "id": SLOT_ID,
        "kind": "kms",
        "params": params,
        "wrapped_root": record.hex(),
        "kcv": expand(SLOT_KEY, b"narvault/v1/kcv").hex(),
    }
    text = json.dumps({"slot": slot, "slot_key": SLOT_KEY.hex()}, indent=2)
    (HERE / "slot.json").write_text(text + "\n")


main()
