"""The packed record: round trip, and one clear error for each way to be broken."""

import hashlib
import json

import pytest

from osdhuman_jax.data.records import MAGIC, RecordError, decode_record, encode_record

HEADER = {"crop_id": "coco/42#1", "w": 512, "h": 510, "codec": "webp"}
PAYLOAD = bytes(range(256)) * 3
RECORD = encode_record(HEADER, PAYLOAD)


def test_round_trip_adds_the_digest():
    header, payload = decode_record(RECORD)
    assert payload == PAYLOAD
    assert header == {**HEADER, "sha256": hashlib.sha256(PAYLOAD).hexdigest()}


def test_layout_is_the_one_on_disk():
    length = int.from_bytes(RECORD[4:8], "little")
    assert RECORD[:4] == MAGIC + b"\x01"
    assert json.loads(RECORD[8 : 8 + length])["crop_id"] == HEADER["crop_id"]
    assert RECORD[8 + length :] == PAYLOAD


def test_further_header_values_and_non_ascii_names_pass_through():
    header, _ = decode_record(encode_record({**HEADER, "crop_id": "фото", "score": 1.5}, b""))
    assert (header["crop_id"], header["score"]) == ("фото", 1.5)


def test_encode_refuses_missing_fields_and_a_foreign_digest():
    with pytest.raises(RecordError, match="lacks h, codec"):
        encode_record({"crop_id": "a", "w": 1}, PAYLOAD)
    with pytest.raises(RecordError, match="sha256"):
        encode_record({**HEADER, "sha256": "0" * 64}, PAYLOAD)


def _with_header(text: bytes) -> bytes:
    return RECORD[:4] + len(text).to_bytes(4, "little") + text + PAYLOAD


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a record"),
        (b"\x89PNG" + RECORD, "not a record"),
        (MAGIC + b"\x02" + RECORD[4:], "version 2"),
        (RECORD[:40], "truncated record: 40 bytes"),
        (RECORD[:-1] + b"\x00", "coco/42#1: picture damaged or cut"),
        (_with_header(b"{not json"), "not JSON"),
        (_with_header(b"\xff\xfe"), "not JSON"),
        (_with_header(b"[]"), "header needs crop_id"),
        (_with_header(b'{"crop_id": 1}'), "header needs crop_id"),
    ],
)
def test_decode_names_what_is_wrong(data, message):
    with pytest.raises(RecordError, match=message):
        decode_record(data)


def test_every_cut_is_noticed():
    for end in range(len(RECORD)):
        with pytest.raises(RecordError):
            decode_record(RECORD[:end])
