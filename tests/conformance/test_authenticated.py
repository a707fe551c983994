"""Private authenticated variables: whoever signed the first value owns the variable.

The variable is under our own vendor GUID, the keys are made for the run. Recorded rows: group authA
and log-auth-delete-by-att; EFI_SECURITY_VIOLATION is EACCES (K6 drivers/firmware/efi/efi.c).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import UUID

import pytest

from harness.board.board import Board
from harness.capabilities import VENDOR_GUID
from harness.expectations import recorded
from harness.formats.authentication import (
    CERT_DATA_OFFSET,
    CERT_RSA2048_SHA256_GUID,
    TIME_SIZE,
    WIN_CERTIFICATE_GUID_SIZE,
    Authentication2,
)
from harness.formats.efi import CERT_DB_GUID, Attributes, EfiTime
from harness.instruments.efivars import NV_BS_RT, Efivars, VariableName
from harness.instruments.outcomes import accepted, refused
from harness.instruments.rpmb import Rpmb
from harness.safekeeping import authenticated
from harness.safekeeping.secure_boot import key_directory
from harness.signing import (
    APPENDED,
    AUTHENTICATED,
    Digest,
    Signer,
    moment,
    unsigned,
)
from harness.store import listing

NAME, HELD = "P", "K"
"""One character: StandaloneMM keeps the signer under the name, and both fill the store."""

FIRST = b"first"

VALUE = 80
"""Store bytes of a value of up to 16 bytes: header 60, name 4 (harness.store.records)."""
OWNED = 204 + 140
"""certdb with an entry of 28 + 2 + 32 bytes more, and without it again after the deletion."""
CREATE = VALUE + OWNED

WIN_CERT_TYPE_PKCS_SIGNED_DATA = 0x0002
WIN_CERT_TYPE_EFI_PKCS115 = 0x0EF0
SIGNATURE_BYTES = 256
"""RSA-2048."""

PLAIN_LIMIT = 8132
"""Bytes of name and value of a variable that is not authenticated (stack 4.4)."""
LARGEST = 10226 - 40 - 4 - CERT_DATA_OFFSET
"""Value under a bare descriptor: Linux takes 10226 bytes of a message of SetVariable, of which
40 are its header and 4 the name (stack 5.1, 5.3)."""

pytestmark = [pytest.mark.needs("writable"), pytest.mark.consents("write_rpmb")]


def held_costs(each: int = 0) -> pytest.MarkDecorator:
    """The first test creates the shared variable; ``each`` is what this one takes besides, with
    what it takes to put the value back."""
    return pytest.mark.cost(store_bytes=CREATE + each, each=each, story="held")


@dataclass(frozen=True)
class Keys:
    """The pairs of these tests, kept with the board: a killed run's variable can be deleted."""

    owner: Signer
    owners_twin: Signer
    """Another key under the owner's name."""
    stranger: Signer


@dataclass
class Private:
    """One private variable. Times are in seconds after ``base``, which rises so that the value
    can be put back after a test has moved the variable's clock."""

    board: Board
    keys: Keys
    name: str
    base: int = 0
    touched: bool = False

    @property
    def efivars(self) -> Efivars:
        return self.board.efivars

    @property
    def data(self) -> bytes:
        return self.efivars.read(self.name).data

    @property
    def exists(self) -> bool:
        """Whether there is a variable; a file that was never committed is none."""
        return self.efivars.exists(self.name) and self.efivars.read_raw(self.name) != b""

    def signed(
        self,
        payload: bytes,
        at: int,
        *,
        by: Signer | None = None,
        attributes: int = AUTHENTICATED,
        digest: Digest = "sha256",
        content_info: bool = False,
    ) -> bytes:
        """What a right SetVariable takes; by the owner unless said otherwise."""
        return (by or self.keys.owner).update(
            self.name,
            VENDOR_GUID,
            payload,
            moment(self.base + at),
            attributes=attributes,
            digest=digest,
            content_info=content_info,
        )

    def write(self, data: bytes, attributes: int = AUTHENTICATED) -> None:
        """SetVariable with exactly this data."""
        self.efivars.overwrite(self.name, data, attributes)
        self.touched = True

    def set(self, payload: bytes, at: int, *, by: Signer | None = None) -> None:
        """The signed value."""
        self.write(self.signed(payload, at, by=by))

    def append(self, payload: bytes, at: int) -> None:
        """The signed value added."""
        self.write(self.signed(payload, at, attributes=APPENDED), APPENDED)

    def delete(self, at: int = 100, *, by: Signer | None = None) -> None:
        """A signed empty value."""
        self.set(b"", at, by=by)

    def remove(self) -> None:
        """No variable any more, whoever owns it and of whatever time it is."""
        if self.exists:
            authenticated.delete(self.board, VariableName(self.name, VENDOR_GUID))

    def put_back(self) -> None:
        """The value is FIRST, of second 0, and the owner's."""
        if self.touched or not self.exists or self.data != FIRST:
            self.base += 1000
            try:
                self.set(FIRST, 0)
            except PermissionError:
                self.remove()
                self.set(FIRST, 0)
        self.touched = False


@pytest.fixture(scope="module")
def keys(board: Board) -> Keys:
    # The file that keeps signers may not be listed, either.
    listing.of_the_store(board)
    directory = key_directory(board)
    owner, stranger = (Signer.kept(directory, name) for name in ("owner", "stranger"))
    return Keys(owner, Signer.create("owner of the suite"), stranger)


@pytest.fixture
def private(board: Board, keys: Keys) -> Iterator[Private]:
    """No variable before the test and none after it."""
    variable = Private(board, keys, NAME)
    variable.remove()
    yield variable
    variable.remove()


@pytest.fixture(scope="module")
def held(board: Board, keys: Keys) -> Iterator[Private]:
    """A variable that all tests of this module share: to create one costs most."""
    variable = Private(board, keys, HELD)
    board.kept_variables.add(VariableName(HELD, VENDOR_GUID))
    try:
        variable.remove()
        yield variable
        variable.remove()
    finally:
        board.kept_variables.discard(VariableName(HELD, VENDOR_GUID))


@pytest.fixture
def existing(held: Private) -> Iterator[Private]:
    """The shared variable with the value FIRST, of second 0; the test that moves it pays for
    putting it back."""
    held.put_back()
    yield held
    held.put_back()


class TestCreate:
    @pytest.mark.cases(244)
    @pytest.mark.cost(store_bytes=CREATE)
    def test_the_value_is_what_follows_the_descriptor(self, private: Private) -> None:
        with accepted():
            private.set(b"eleven byte", 0)
        assert private.data == b"eleven byte"
        assert private.efivars.size(NAME) == recorded(15, "authA-001.st_size")

    @pytest.mark.cases(244)
    @held_costs()
    def test_it_shows_the_attribute_of_authentication(self, existing: Private) -> None:
        assert existing.efivars.read(HELD).attributes == 0x27

    @pytest.mark.cases(242)
    @pytest.mark.cost(store_bytes=CREATE + 32)
    @pytest.mark.parametrize("digest", ["sha384", "sha512"])
    def test_stronger_digests_than_sha256_are_taken(self, private: Private, digest: Digest) -> None:
        with accepted():
            private.write(private.signed(b"digested", 0, digest=digest))
        assert private.data == b"digested"

    @pytest.mark.cases(243)
    @held_costs(2 * VALUE)
    def test_pkcs7_may_be_wrapped_in_a_content_info(self, existing: Private) -> None:
        with accepted():
            existing.write(existing.signed(b"wrapped", 1, content_info=True))
        assert existing.data == b"wrapped"

    @pytest.mark.cases(252)
    @pytest.mark.cost(store_bytes=CREATE)
    def test_an_append_creates_what_is_not_there(self, private: Private) -> None:
        with accepted():
            private.append(b"appended", 0)
        variable = private.efivars.read(NAME)
        assert (variable.attributes, variable.data) == (0x27, b"appended")

    @pytest.mark.cases(244, 254)
    @pytest.mark.cost(store_bytes=CREATE + 2 * OWNED)
    def test_the_signer_is_remembered_as_long_as_the_variable_lives(self, private: Private) -> None:
        before = private.efivars.read("certdb", CERT_DB_GUID).data
        private.set(b"owned", 0)
        entry = private.efivars.read("certdb", CERT_DB_GUID).data[len(before) :]
        # GUID, three sizes, name without NUL, SHA-256: stack 4.7.
        assert len(entry) == 28 + 2 + 32
        assert entry[:16] == VENDOR_GUID.bytes_le
        private.delete()
        assert private.efivars.read("certdb", CERT_DB_GUID).data == before


class TestRefusedAtCreation:
    """The first value is checked against its own signature, and nothing is created."""

    def refused(self, private: Private, data: bytes, code: int = errno.EACCES) -> None:
        with refused(code):
            private.write(data)
        assert not private.exists

    @pytest.mark.cases(259)
    def test_changed_data_under_a_good_signature(self, private: Private) -> None:
        self.refused(private, private.signed(b"data", 0)[:-1] + b"e")

    @pytest.mark.cases(259)
    def test_data_added_under_a_good_signature(self, private: Private) -> None:
        self.refused(private, private.signed(b"data", 0) + b"+")

    @pytest.mark.cases(260)
    def test_a_changed_time_stamp_under_a_good_signature(self, private: Private) -> None:
        self.refused(private, moment(1).pack() + private.signed(b"data", 0)[TIME_SIZE:])

    @pytest.mark.cases(261)
    def test_a_signature_for_another_guid(self, private: Private) -> None:
        other = UUID(int=VENDOR_GUID.int ^ 1)
        self.refused(private, private.keys.owner.update(NAME, other, b"data", moment(0)))

    @pytest.mark.cases(261)
    def test_a_signature_for_another_name(self, private: Private) -> None:
        self.refused(private, private.keys.owner.update("Q", VENDOR_GUID, b"data", moment(0)))

    @pytest.mark.cases(253)
    def test_a_signature_for_other_attributes(self, private: Private) -> None:
        self.refused(private, private.signed(b"data", 0, attributes=0x26))

    @pytest.mark.cases(246)
    def test_a_changed_signature(self, private: Private) -> None:
        descriptor, payload = Authentication2.split(private.signed(b"data", 0))
        # The signature is the last field of the message.
        damaged = descriptor.pkcs7[:-1] + bytes([descriptor.pkcs7[-1] ^ 1])
        self.refused(private, replace(descriptor, pkcs7=damaged).pack() + payload)

    @pytest.mark.cases(246)
    def test_one_s_signature_with_another_s_certificate(self, private: Private) -> None:
        descriptor, payload = Authentication2.split(private.signed(b"data", 0))
        signature = descriptor.pkcs7[-SIGNATURE_BYTES:]
        by_another, _ = Authentication2.split(private.signed(b"data", 0, by=private.keys.stranger))
        mixed = by_another.pkcs7[:-SIGNATURE_BYTES] + signature
        self.refused(private, replace(descriptor, pkcs7=mixed).pack() + payload)

    @pytest.mark.cases(246)
    def test_nobody_s_signature(self, private: Private) -> None:
        self.refused(private, unsigned(b"data", moment(0)))

    @pytest.mark.cases(241)
    def test_sha1(self, private: Private) -> None:
        self.refused(private, private.signed(b"data", 0, digest="sha1"))

    @pytest.mark.cases(239)
    @pytest.mark.parametrize("field", ["pad1", "nanosecond", "timezone", "daylight", "pad2"])
    def test_a_time_stamp_with_what_must_be_zero(self, private: Private, field: str) -> None:
        time = replace(moment(0), **{field: 1})
        self.refused(private, private.keys.owner.update(NAME, VENDOR_GUID, b"data", time))

    @pytest.mark.cases(240)
    @pytest.mark.parametrize(
        "kind",
        [
            pytest.param(WIN_CERT_TYPE_PKCS_SIGNED_DATA, id="PKCS_SIGNED_DATA"),
            pytest.param(WIN_CERT_TYPE_EFI_PKCS115, id="EFI_PKCS115"),
        ],
    )
    def test_a_certificate_of_another_type(self, private: Private, kind: int) -> None:
        descriptor, payload = Authentication2.split(private.signed(b"data", 0))
        self.refused(private, replace(descriptor, certificate_type=kind).pack() + payload)

    @pytest.mark.cases(240)
    def test_a_certificate_that_says_it_is_no_pkcs7(self, private: Private) -> None:
        descriptor, payload = Authentication2.split(private.signed(b"data", 0))
        other = replace(descriptor, certificate_guid=CERT_RSA2048_SHA256_GUID)
        self.refused(private, other.pack() + payload)

    @pytest.mark.cases(238)
    @pytest.mark.parametrize("excess", [1, 1 << 31])
    def test_a_certificate_longer_than_the_data(self, private: Private, excess: int) -> None:
        good = private.signed(b"data", 0)
        self.refused(private, with_length(good, len(good) - TIME_SIZE + excess))

    @pytest.mark.cases(238)
    @pytest.mark.parametrize("length", [0, WIN_CERTIFICATE_GUID_SIZE - 1])
    def test_a_certificate_shorter_than_its_header(self, private: Private, length: int) -> None:
        self.refused(private, with_length(private.signed(b"data", 0), length))

    @pytest.mark.cases(238)
    def test_a_length_that_ends_within_the_signature(self, private: Private) -> None:
        good = private.signed(b"data", 0)
        self.refused(private, with_length(good, len(good) - TIME_SIZE - len(b"data") - 1))

    @pytest.mark.cases(237)
    @pytest.mark.parametrize("size", [0, TIME_SIZE, CERT_DATA_OFFSET - 1, CERT_DATA_OFFSET])
    def test_a_descriptor_cut_short(self, private: Private, size: int) -> None:
        self.refused(private, private.signed(b"data", 0)[:size])

    @pytest.mark.cases(237)
    def test_plain_data(self, private: Private) -> None:
        self.refused(private, b"plain data, and as long as a descriptor would be")

    @pytest.mark.cases(254)
    def test_a_deletion_of_nothing(self, private: Private) -> None:
        """EFI_NOT_FOUND, which efivarfs reports as EIO (K6 fs/efivarfs/file.c). Recorded for PK in
        log-auth-delete-by-att."""
        self.refused(private, private.signed(b"", 0), errno.EIO)


def with_length(data: bytes, length: int) -> bytes:
    """The same data with another dwLength."""
    return data[:TIME_SIZE] + length.to_bytes(4, "little") + data[TIME_SIZE + 4 :]


class TestSize:
    """Sizes are looked at before the signature, so this costs nothing."""

    @pytest.mark.cases(236)
    def test_more_than_a_plain_variable_may_have_is_left_to_the_signature(
        self, private: Private
    ) -> None:
        with refused(errno.EACCES):
            private.write(unsigned(bytes(PLAIN_LIMIT), moment(0)))

    @pytest.mark.cases(236)
    def test_up_to_the_limit_the_signature_decides(self, private: Private) -> None:
        with refused(errno.EACCES):
            private.write(unsigned(bytes(LARGEST), moment(0)))

    @pytest.mark.cases(236)
    def test_one_byte_more_is_an_invalid_argument(self, private: Private) -> None:
        with refused(errno.EINVAL):
            private.write(unsigned(bytes(LARGEST + 1), moment(0)))


class TestUpdate:
    @pytest.mark.cases(247)
    @held_costs(2 * VALUE)
    def test_a_later_time_stamp_is_taken(self, existing: Private) -> None:
        with accepted():
            existing.set(b"second", 1)
        assert existing.data == b"second"

    @pytest.mark.cases(245)
    @held_costs(2 * VALUE)
    def test_a_replay_is_refused(self, existing: Private) -> None:
        data = existing.signed(b"second", 1)
        existing.write(data)
        with refused(recorded(errno.EACCES, "authA-002[1]")):
            existing.write(data)

    @pytest.mark.cases(245)
    @held_costs(3 * VALUE)
    def test_the_replay_of_an_earlier_value_is_refused(self, existing: Private) -> None:
        data = existing.signed(b"second", 1)
        existing.write(data)
        existing.set(b"third", 2)
        with refused(recorded(errno.EACCES, "authA-005[1]")):
            existing.write(data)
        assert existing.data == b"third"

    @pytest.mark.cases(249)
    @held_costs()
    def test_an_equal_time_stamp_is_refused(self, existing: Private) -> None:
        with refused(errno.EACCES):
            existing.set(b"second", 0)
        assert existing.data == FIRST

    @pytest.mark.cases(248)
    @held_costs()
    def test_an_older_time_stamp_is_refused(self, existing: Private) -> None:
        with refused(errno.EACCES):
            existing.set(b"second", -1)
        assert existing.data == FIRST

    @pytest.mark.cases(250)
    @pytest.mark.cost(store_bytes=CREATE + VALUE)
    def test_a_later_year_beats_a_later_month_and_day(self, private: Private) -> None:
        old, new = EfiTime(2026, 12, 31, 23, 59, 59), EfiTime(2027, 1, 1)
        update = private.keys.owner.update
        private.write(update(NAME, VENDOR_GUID, b"old", old))
        with accepted():
            private.write(update(NAME, VENDOR_GUID, b"new", new))
        with refused(errno.EACCES):
            private.write(update(NAME, VENDOR_GUID, b"old", old))
        assert private.data == b"new"

    @pytest.mark.cases(251)
    @held_costs()
    def test_another_signer_is_refused(self, existing: Private) -> None:
        with refused(recorded(errno.EACCES, "authA-003[1]")):
            existing.set(b"taken over", 1, by=existing.keys.stranger)
        assert existing.data == FIRST

    @pytest.mark.cases(251)
    @held_costs()
    def test_another_signer_of_the_same_name_is_refused(self, existing: Private) -> None:
        with refused(errno.EACCES):
            existing.set(b"taken over", 1, by=existing.keys.owners_twin)
        assert existing.data == FIRST

    @pytest.mark.cases(259)
    @held_costs()
    def test_changed_data_is_refused_and_the_value_stays(self, existing: Private) -> None:
        with refused(errno.EACCES):
            existing.write(existing.signed(b"second", 1)[:-1] + b"D")
        assert existing.data == FIRST

    @pytest.mark.cases(261)
    @held_costs()
    def test_an_update_for_another_name_is_refused(self, existing: Private) -> None:
        time = moment(existing.base + 1)
        with refused(recorded(errno.EACCES, "authA-007[1]")):
            existing.write(existing.keys.owner.update("Q", VENDOR_GUID, b"second", time))
        assert existing.data == FIRST

    @pytest.mark.cases(257)
    @held_costs()
    def test_a_plain_write_is_an_invalid_argument(self, existing: Private) -> None:
        with refused(recorded(errno.EINVAL, "authA-008[1]")):
            existing.write(b"plain", NV_BS_RT)
        assert existing.data == FIRST

    @pytest.mark.cases(257)
    @held_costs()
    def test_a_plain_append_is_an_invalid_argument(self, existing: Private) -> None:
        with refused(errno.EINVAL):
            existing.write(b"plain", NV_BS_RT | Attributes.APPEND_WRITE)
        assert existing.data == FIRST

    @pytest.mark.cases(257)
    @pytest.mark.cost(store_bytes=VALUE)
    def test_a_plain_variable_does_not_become_an_authenticated_one(self, private: Private) -> None:
        private.write(b"plain", NV_BS_RT)
        with refused(errno.EINVAL):
            private.set(b"signed", 0)
        variable = private.efivars.read(NAME)
        private.efivars.delete(NAME)
        assert (variable.attributes, variable.data) == (NV_BS_RT, b"plain")

    @pytest.mark.cases(245)
    @pytest.mark.needs("rpmb_access")
    @held_costs()
    def test_a_refused_update_costs_no_rpmb_write(self, existing: Private, rpmb: Rpmb) -> None:
        before = rpmb.counter()
        with refused(errno.EACCES):
            existing.set(b"second", 0)
        assert rpmb.counter() - before == recorded(0, "authA-002.rpmb_writes")


class TestAppend:
    @pytest.mark.cases(252)
    @held_costs(2 * VALUE)
    def test_signed_data_is_added(self, existing: Private) -> None:
        with accepted():
            existing.append(b"+more", 1)
        variable = existing.efivars.read(HELD)
        assert (variable.attributes, variable.data) == (0x27, FIRST + b"+more")

    @pytest.mark.cases(252)
    @held_costs(2 * VALUE)
    def test_an_older_one_is_taken_and_does_not_turn_the_clock_back(
        self, existing: Private
    ) -> None:
        with accepted():
            existing.append(b"+old", -10)
        assert existing.data == FIRST + b"+old"
        with refused(errno.EACCES):
            existing.set(b"between", -5)

    @pytest.mark.cases(252)
    @held_costs(2 * VALUE)
    def test_a_newer_one_moves_the_clock(self, existing: Private) -> None:
        with accepted():
            existing.append(b"+new", 10)
        with refused(errno.EACCES):
            existing.set(b"between", 5)
        assert existing.data == FIRST + b"+new"

    @pytest.mark.cases(253)
    @held_costs()
    def test_the_signature_must_cover_the_append_attribute(self, existing: Private) -> None:
        with refused(errno.EACCES):
            existing.write(existing.signed(b"+more", 1), APPENDED)
        assert existing.data == FIRST

    @pytest.mark.cases(253)
    @held_costs()
    def test_a_signature_for_an_append_does_not_replace(self, existing: Private) -> None:
        with refused(errno.EACCES):
            existing.write(existing.signed(b"+more", 1, attributes=APPENDED), AUTHENTICATED)
        assert existing.data == FIRST

    @pytest.mark.cases(251)
    @held_costs()
    def test_another_signer_is_refused(self, existing: Private) -> None:
        data = existing.signed(b"+more", 1, by=existing.keys.stranger, attributes=APPENDED)
        with refused(errno.EACCES):
            existing.write(data, APPENDED)
        assert existing.data == FIRST

    @pytest.mark.cases(255)
    @held_costs()
    def test_nothing_appended_by_nobody_deletes_nothing(self, existing: Private) -> None:
        with refused(errno.EACCES):
            existing.write(unsigned(b"", moment(existing.base + 1)), APPENDED)
        assert existing.data == FIRST


class TestDelete:
    @pytest.mark.cases(254)
    @held_costs(CREATE)
    def test_a_signed_empty_value_deletes(self, existing: Private) -> None:
        with accepted():
            existing.delete()
        assert existing.efivars.exists(HELD) is recorded(False, "authA-010.file")

    @pytest.mark.cases(255)
    @pytest.mark.pain(26)
    @held_costs(CREATE)
    def test_a_bare_descriptor_deletes_as_presence_is_asserted(self, existing: Private) -> None:
        """This firmware takes the user's physical presence for given, so that root needs no key
        (stack 4.7, EDK2 PcdUserPhysicalPresence)."""
        with accepted():
            existing.write(unsigned(b"", moment(0)))
        assert not existing.efivars.exists(HELD)

    @pytest.mark.cases(255)
    @pytest.mark.pain(26)
    @held_costs(CREATE)
    def test_an_unrelated_signer_deletes_as_presence_is_asserted(self, existing: Private) -> None:
        """As recorded in log-auth-delete-by-att."""
        with accepted():
            existing.delete(by=existing.keys.stranger)
        assert not existing.efivars.exists(HELD)

    @pytest.mark.cases(256)
    @held_costs()
    def test_unlink_is_refused(self, existing: Private) -> None:
        with refused(recorded(errno.EINVAL, "authA-009[1]")):
            existing.efivars.delete(HELD)
        assert existing.efivars.exists(HELD) is recorded(True, "authA-009.exists")
        assert existing.data == FIRST

    @pytest.mark.cases(256)
    @held_costs()
    def test_a_write_of_no_attributes_is_refused(self, existing: Private) -> None:
        """EFI_WRITE_PROTECTED, which is EROFS."""
        with refused(errno.EROFS):
            existing.write(b"", 0)
        assert existing.data == FIRST

    @pytest.mark.cases(257)
    @held_costs()
    def test_an_empty_plain_write_is_refused(self, existing: Private) -> None:
        with refused(errno.EINVAL):
            existing.write(b"", NV_BS_RT)
        assert existing.data == FIRST

    @pytest.mark.cases(258)
    @held_costs(2 * CREATE)
    def test_after_it_the_next_signer_owns_the_name(self, existing: Private) -> None:
        existing.delete()
        with accepted():
            existing.set(b"mine now", 1, by=existing.keys.stranger)
        with refused(errno.EACCES):
            existing.set(b"mine again", 2)
        assert existing.data == b"mine now"

    @pytest.mark.cases(245, 254)
    @held_costs(2 * CREATE)
    def test_after_it_an_old_update_creates_anew(self, existing: Private) -> None:
        """The time stamp goes with the variable: as authA-011 after authA-010."""
        old = existing.signed(b"once more", 0)
        existing.delete()
        with accepted():
            existing.write(old)
        assert existing.data == b"once more"


@pytest.mark.cases(244, 245, 251)
@pytest.mark.power
@pytest.mark.consents("power_cycle")
@held_costs()
def test_value_time_stamp_and_owner_outlive_a_reboot(board: Board, existing: Private) -> None:
    board.reboot()
    listing.of_the_store(board)
    assert existing.data == FIRST
    with refused(errno.EACCES):
        existing.set(b"replayed", 0)
    with refused(errno.EACCES):
        existing.set(b"taken over", 1, by=existing.keys.stranger)
    assert existing.data == FIRST


@pytest.mark.cases(262)
def test_a_volatile_one_exists_only_before_exit_boot_services(
    board: Board, private: Private
) -> None:
    """Without NON_VOLATILE; its signer would be kept in certdbv."""
    attributes = AUTHENTICATED & ~Attributes.NON_VOLATILE
    data = private.signed(b"volatile", 0, attributes=attributes)
    if board.capabilities.has("exit_boot_services_told"):
        with refused(errno.EACCES):
            private.write(data, attributes)
        assert not private.exists
    else:
        private.write(data, attributes)
        variable = private.efivars.read(NAME)
        private.write(unsigned(b"", moment(0)), attributes)
        assert (variable.attributes, variable.data) == (0x26, b"volatile")
