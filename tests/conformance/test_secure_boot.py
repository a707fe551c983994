"""The life cycle of Secure Boot's keys: enrolled in setup mode, guarded in user mode, removed.

With keys of the suite's own, on a board in setup mode, which ends in setup mode without any key.
The tests share one enrolment, because keys are large and the store is small. Recorded rows: group
authB and the transcripts log-file-setupmode and log-auth-delete-by-att.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import pytest

from harness.board.board import Board
from harness.expectations import recorded
from harness.formats.authentication import (
    CERT_SHA256_GUID,
    SignatureList,
    parse_signature_lists,
)
from harness.formats.efi import (
    GLOBAL_VARIABLE_GUID,
    IMAGE_SECURITY_DATABASE_GUID,
    Attributes,
    EfiTime,
)
from harness.instruments.efivars import NV_BS_RT, Efivars, VariableName
from harness.instruments.outcomes import accepted, refused
from harness.instruments.rpmb import Rpmb
from harness.probe import steps as do
from harness.safekeeping import authenticated
from harness.safekeeping.secure_boot import key_directory, require_own_keys
from harness.signing import (
    APPENDED,
    AUTHENTICATED,
    OWNER,
    Signer,
    certificate_list,
    digest_list,
    elliptic_certificate,
    moment,
    unsigned,
)
from harness.store import listing

GUIDS: Final = {
    "PK": GLOBAL_VARIABLE_GUID,
    "KEK": GLOBAL_VARIABLE_GUID,
    "db": IMAGE_SECURITY_DATABASE_GUID,
    "dbx": IMAGE_SECURITY_DATABASE_GUID,
}
NAMES: Final = tuple(GUIDS)
DATABASES: Final = ("db", "dbx")
VARIABLES: Final = tuple(VariableName(name, guid) for name, guid in GUIDS.items())

PK_BYTES = KEK_BYTES = 840
"""Store bytes of a key: header 60, name, list 28, owner 16, certificate of up to 724."""
DB_BYTES = 150
"""Store bytes of a database of one SHA-256."""
TWO_LISTS_BYTES = DB_BYTES + 76
"""Store bytes of a database that a list of one SHA-256 was appended to."""
ENABLE_BYTES = 96
"""Store bytes of SecureBootEnable, which StandaloneMM writes at the first boot with a PK."""
ENROLMENT = PK_BYTES + KEK_BYTES + 2 * DB_BYTES

UPDATE_FILE = "/tmp/hil-update.auth"


def user_costs(each: int = 0) -> pytest.MarkDecorator:
    """The first test enrols the keys; ``each`` is what this one takes besides, with what it takes
    to be back in user mode."""
    return pytest.mark.cost(store_bytes=ENROLMENT + each, each=each, story="user mode")


def digest(text: str) -> bytes:
    """A SHA-256 to put into a database."""
    return hashlib.sha256(text.encode()).digest()


pytestmark = [
    pytest.mark.needs("writable"),
    pytest.mark.consents("write_rpmb", "secure_boot_keys", "foreign_variables"),
    pytest.mark.foreign(*NAMES),
    pytest.mark.destructive,
]


@dataclass(frozen=True)
class Keys:
    """The pairs of these tests, kept with the board so that any run can remove what one left."""

    pk: Signer
    kek: Signer
    kek2: Signer
    stranger: Signer
    """In none of the variables."""


@dataclass
class SecureBoot:
    """PK, KEK, db and dbx of a board. ``known`` is what each holds as far as it was written
    whole."""

    board: Board
    keys: Keys
    known: dict[str, bytes] = field(default_factory=dict)
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def efivars(self) -> Efivars:
        return self.board.efivars

    # --- reading ------------------------------------------------------------------------------

    def flag(self, name: str) -> bytes:
        """Value of SetupMode or SecureBoot."""
        return self.efivars.read(name, GLOBAL_VARIABLE_GUID).data

    def data(self, name: str) -> bytes:
        return self.efivars.read(name, GUIDS[name]).data

    def exists(self, name: str) -> bool:
        """Whether there is a variable; a file that was never committed is none."""
        return bool(self.sizes()[name])

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, 0 where there is none, in one round trip."""
        steps = [do.Stat(self.efivars.file(name, guid)) for name, guid in GUIDS.items()]
        return {
            name: outcome.value or 0
            for name, outcome in zip(NAMES, self.board.probe.steps(steps), strict=True)
        }

    # --- writing ------------------------------------------------------------------------------

    def now(self) -> EfiTime:
        """A time stamp later than all before."""
        return moment(10 * next(self.clock))

    def write(self, name: str, data: bytes, attributes: int = AUTHENTICATED) -> None:
        """SetVariable with exactly this data."""
        self.efivars.overwrite(name, data, attributes, GUIDS[name])
        self.known.pop(name, None)

    def update(
        self,
        name: str,
        payload: bytes,
        by: Signer,
        *,
        time: EfiTime | None = None,
        attributes: int = AUTHENTICATED,
    ) -> bytes:
        """What a signed SetVariable takes; as of now unless said otherwise."""
        time = time or self.now()
        return by.update(name, GUIDS[name], payload, time, attributes=attributes)

    def set(self, name: str, payload: bytes, by: Signer, *, time: EfiTime | None = None) -> None:
        """The value, signed."""
        self.write(name, self.update(name, payload, by, time=time))
        self.known[name] = payload

    def append(self, name: str, payload: bytes, by: Signer, *, time: EfiTime | None = None) -> None:
        """More entries, signed."""
        data = self.update(name, payload, by, time=time, attributes=APPENDED)
        self.write(name, data, APPENDED)

    # --- states -------------------------------------------------------------------------------

    @cached_property
    def own(self) -> dict[str, bytes]:
        """What PK and KEK hold in the user mode of these tests."""
        return {
            "KEK": certificate_list(self.keys.kek.certificate),
            "PK": certificate_list(self.keys.pk.certificate),
        }

    def enter_user_mode(self) -> None:
        """PK and KEK are :attr:`own`, db and dbx hold something; writes what differs."""
        try:
            self._enrol()
        except PermissionError:
            self.remove(*NAMES)
            self._enrol()

    def _enrol(self) -> None:
        sizes = self.sizes()
        for name in ("db", "dbx", "KEK", "PK"):
            # PK last: with it setup mode ends.
            wanted = self.own.get(name) or self.known.get(name) or digest_list(digest(name))
            if name in DATABASES and name not in self.known and sizes[name] > 4:
                self.known[name] = self.data(name)
            elif self.known.get(name) != wanted or sizes[name] != 4 + len(wanted):
                self.set(name, wanted, self.keys.pk)

    def remove(self, *names: str) -> None:
        """Delete these, whatever they hold."""
        for name in names:
            if self.exists(name):
                authenticated.delete(self.board, VariableName(name, GUIDS[name]))
            self.known.pop(name, None)


@pytest.fixture(scope="module")
def keys(board: Board) -> Keys:
    directory = key_directory(board)
    return Keys(*(Signer.kept(directory, name) for name in ("PK", "KEK", "KEK2", "stranger")))


@pytest.fixture(scope="module")
def shared(board: Board, keys: Keys) -> Iterator[SecureBoot]:
    """The board's Secure Boot with no keys in it, and with none again at the end."""
    require_own_keys(board)
    listing.of_the_store(board)
    boot = SecureBoot(board, keys)
    with board.foreign_writes.allowing(*NAMES):
        board.kept_variables.update(VARIABLES)
        try:
            boot.remove(*NAMES)
            yield boot
        finally:
            boot.remove(*NAMES)
            board.kept_variables.difference_update(VARIABLES)


@pytest.fixture
def user(shared: SecureBoot) -> Iterator[SecureBoot]:
    """User mode; the test that leaves it pays for the way back."""
    shared.enter_user_mode()
    yield shared
    shared.enter_user_mode()


def reboot(board: Board) -> None:
    board.reboot()
    listing.of_the_store(board)


@pytest.fixture(scope="class")
def setup_mode(shared: SecureBoot) -> Iterator[SecureBoot]:
    """Setup mode for a class: PK is large."""
    shared.enter_user_mode()
    yield shared
    shared.enter_user_mode()


@pytest.fixture
def without_pk(setup_mode: SecureBoot) -> SecureBoot:
    """Setup mode with KEK, db and dbx."""
    setup_mode.remove("PK")
    return setup_mode


class TestSetupMode:
    @pytest.mark.cases(265)
    @user_costs(PK_BYTES)
    def test_without_pk_the_mode_is_setup(self, without_pk: SecureBoot) -> None:
        assert without_pk.flag("SetupMode").hex() == recorded("01", "authA-001.SetupMode")

    @pytest.mark.cases(266)
    @user_costs(PK_BYTES)
    def test_no_pk_without_the_attribute_of_authentication(self, without_pk: SecureBoot) -> None:
        with refused(errno.EINVAL):
            without_pk.write("PK", without_pk.own["PK"], NV_BS_RT)
        assert without_pk.flag("SetupMode") == b"\1"

    @pytest.mark.cases(267)
    @user_costs(PK_BYTES + DB_BYTES)
    def test_it_does_not_matter_who_signed(self, without_pk: SecureBoot) -> None:
        """As authB-003: KEK by an unrelated key."""
        payload = digest_list(digest("anybody's"))
        with accepted():
            without_pk.set("db", payload, without_pk.keys.stranger)
        assert without_pk.data("db") == payload

    @pytest.mark.cases(267)
    @user_costs(PK_BYTES + DB_BYTES)
    def test_nobody_needs_to_sign(self, without_pk: SecureBoot) -> None:
        payload = digest_list(digest("nobody's"))
        with accepted():
            without_pk.write("db", unsigned(payload, without_pk.now()))
        assert without_pk.data("db") == payload

    @pytest.mark.cases(290)
    @user_costs(PK_BYTES + DB_BYTES)
    def test_an_older_time_stamp_is_taken(self, without_pk: SecureBoot) -> None:
        payload = digest_list(digest("older"))
        with accepted():
            without_pk.set("dbx", payload, without_pk.keys.pk, time=moment(0))
        assert without_pk.data("dbx") == payload

    @pytest.mark.cases(287, 289)
    @user_costs(PK_BYTES)
    def test_the_lists_are_looked_at_all_the_same(self, without_pk: SecureBoot) -> None:
        with refused(errno.EINVAL):
            without_pk.set("PK", without_pk.own["PK"] + b"\0", without_pk.keys.pk)
        assert without_pk.flag("SetupMode") == b"\1"

    @pytest.mark.cases(284)
    @user_costs(PK_BYTES)
    def test_a_pk_that_is_not_there_is_not_deleted(self, without_pk: SecureBoot) -> None:
        """EFI_NOT_FOUND is EIO in write(2): recorded in log-auth-delete-by-att."""
        with refused(errno.EIO):
            without_pk.set("PK", b"", without_pk.keys.pk)

    @pytest.mark.cases(265, 267, 268, 284)
    @pytest.mark.power
    @pytest.mark.consents("power_cycle")
    @user_costs(2 * PK_BYTES + ENABLE_BYTES)
    def test_the_life_cycle_of_a_platform_key(self, without_pk: SecureBoot) -> None:
        """SetupMode follows PK at once. SecureBoot follows at the next boot where StandaloneMM
        knows that the operating system runs (authB-005), and at once where it does not
        (log-file-setupmode)."""
        boot = without_pk
        told = boot.board.capabilities.has("exit_boot_services_told")
        at_start = boot.flag("SecureBoot")
        with accepted():
            boot.set("PK", boot.own["PK"], boot.keys.stranger)
        assert boot.flag("SetupMode").hex() == recorded("00", "authB-005.SetupMode")
        assert boot.flag("SecureBoot") == (at_start if told else b"\1")

        held = {name: boot.data(name) for name in NAMES}
        reboot(boot.board)
        assert (boot.flag("SetupMode"), boot.flag("SecureBoot")) == (b"\0", b"\1")
        assert {name: boot.data(name) for name in NAMES} == held
        with refused(errno.EACCES):
            boot.set("db", held["db"], boot.keys.stranger)

        with accepted():
            boot.set("PK", b"", boot.keys.pk)
        assert boot.flag("SetupMode") == b"\1"
        assert boot.flag("SecureBoot") == (b"\1" if told else b"\0")

        reboot(boot.board)
        assert (boot.flag("SetupMode"), boot.flag("SecureBoot")) == (b"\1", b"\0")
        assert not boot.exists("PK")
        assert boot.data("KEK") == held["KEK"]


class TestMode:
    @pytest.mark.cases(268)
    @user_costs()
    def test_with_pk_the_mode_is_user(self, user: SecureBoot) -> None:
        assert user.flag("SetupMode").hex() == recorded("00", "authB-006.SetupMode")

    @pytest.mark.cases(293)
    @pytest.mark.parametrize("name", ["SetupMode", "SecureBoot"])
    def test_the_mode_is_volatile(self, shared: SecureBoot, name: str) -> None:
        assert shared.efivars.read(name, GLOBAL_VARIABLE_GUID).attributes == 0x06

    @pytest.mark.cases(293)
    @user_costs()
    @pytest.mark.parametrize("name", NAMES)
    def test_keys_show_the_attribute_of_authentication(self, user: SecureBoot, name: str) -> None:
        assert user.efivars.read(name, GUIDS[name]).attributes == 0x27

    @pytest.mark.cases(282)
    @user_costs()
    @pytest.mark.parametrize("name", NAMES)
    def test_a_key_s_file_is_immutable(self, user: SecureBoot, name: str) -> None:
        user.efivars.set_immutable(name, True, GUIDS[name])
        before = user.data(name)
        with refused(errno.EPERM):
            user.efivars.write(
                name, user.update(name, b"", user.keys.pk), AUTHENTICATED, GUIDS[name]
            )
        assert user.data(name) == before


class TestRefusedInUserMode:
    """What costs nothing because it is not done."""

    @pytest.mark.cases(276, 294)
    @user_costs()
    @pytest.mark.parametrize("name", NAMES)
    def test_unsigned(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with refused(errno.EACCES):
            user.write(name, unsigned(digest_list(digest("unsigned")), user.now()))
        assert user.data(name) == before

    @pytest.mark.cases(283)
    @user_costs()
    def test_pk_by_a_stranger(self, user: SecureBoot) -> None:
        with refused(recorded(errno.EACCES, "authB-006[1]")):
            user.set("PK", certificate_list(user.keys.stranger.certificate), user.keys.stranger)
        assert user.data("PK") == user.own["PK"]

    @pytest.mark.cases(276)
    @user_costs()
    def test_kek_by_a_stranger(self, user: SecureBoot) -> None:
        with refused(recorded(errno.EACCES, "authB-008[1]")):
            user.set("KEK", certificate_list(user.keys.stranger.certificate), user.keys.stranger)
        assert user.data("KEK") == user.own["KEK"]

    @pytest.mark.cases(276, 294)
    @user_costs()
    @pytest.mark.parametrize("name", DATABASES)
    def test_a_database_by_a_stranger(self, user: SecureBoot, name: str) -> None:
        """As log-auth-delete-by-att has it for db."""
        before = user.data(name)
        with refused(errno.EACCES):
            user.set(name, digest_list(digest("strange")), user.keys.stranger)
        assert user.data(name) == before

    @pytest.mark.cases(272)
    @user_costs()
    def test_kek_by_kek(self, user: SecureBoot) -> None:
        with refused(errno.EACCES):
            user.set("KEK", certificate_list(user.keys.kek2.certificate), user.keys.kek)
        assert user.data("KEK") == user.own["KEK"]

    @pytest.mark.cases(283)
    @user_costs()
    def test_pk_by_kek(self, user: SecureBoot) -> None:
        with refused(errno.EACCES):
            user.set("PK", certificate_list(user.keys.kek.certificate), user.keys.kek)
        assert user.data("PK") == user.own["PK"]

    @pytest.mark.cases(276)
    @user_costs()
    def test_a_changed_database_under_a_good_signature(self, user: SecureBoot) -> None:
        before = user.data("db")
        good = user.update("db", digest_list(digest("good")), user.keys.kek)
        with refused(errno.EACCES):
            user.write("db", good[:-1] + bytes([good[-1] ^ 1]))
        assert user.data("db") == before

    @pytest.mark.cases(276)
    @user_costs()
    def test_an_update_of_dbx_for_db(self, user: SecureBoot) -> None:
        before = user.data("db")
        with refused(errno.EACCES):
            user.write("db", user.update("dbx", digest_list(digest("dbx's")), user.keys.kek))
        assert user.data("db") == before

    @pytest.mark.cases(275)
    @user_costs()
    @pytest.mark.parametrize("name", NAMES)
    def test_a_plain_write(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with refused(errno.EINVAL):
            user.write(name, digest_list(digest("plain")), NV_BS_RT)
        assert user.data(name) == before

    @pytest.mark.cases(278)
    @user_costs()
    @pytest.mark.parametrize("name", DATABASES)
    def test_a_plain_append(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with refused(errno.EINVAL):
            user.write(name, digest_list(digest("plain")), NV_BS_RT | Attributes.APPEND_WRITE)
        assert user.data(name) == before

    @pytest.mark.cases(275)
    @user_costs(DB_BYTES)
    @pytest.mark.parametrize("name", DATABASES)
    def test_a_new_database_without_authentication(self, user: SecureBoot, name: str) -> None:
        user.remove(name)
        with refused(errno.EINVAL):
            user.write(name, digest_list(digest("plain")), NV_BS_RT)
        assert not user.exists(name)

    @pytest.mark.cases(282)
    @user_costs()
    @pytest.mark.parametrize("name", NAMES)
    def test_unlink(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with refused(errno.EINVAL):
            user.efivars.delete(name, GUIDS[name])
        assert user.data(name) == before

    @pytest.mark.cases(276)
    @pytest.mark.needs("rpmb_access")
    @user_costs()
    def test_a_refused_update_costs_no_rpmb_write(self, user: SecureBoot, rpmb: Rpmb) -> None:
        before = rpmb.counter()
        with refused(errno.EACCES):
            user.set("KEK", certificate_list(user.keys.stranger.certificate), user.keys.stranger)
        assert rpmb.counter() - before == recorded(0, "authB-008.rpmb_writes")


class TestDatabases:
    @pytest.mark.cases(273, 274, 277)
    @user_costs(DB_BYTES)
    @pytest.mark.parametrize("name", DATABASES)
    @pytest.mark.parametrize("signer", ["pk", "kek"])
    def test_pk_and_kek_update_them(self, user: SecureBoot, name: str, signer: str) -> None:
        payload = digest_list(digest(signer))
        with accepted():
            user.set(name, payload, getattr(user.keys, signer))
        assert user.data(name) == payload

    @pytest.mark.cases(245, 276)
    @user_costs(2 * DB_BYTES)
    def test_a_replay_is_refused(self, user: SecureBoot) -> None:
        old = user.update("db", digest_list(digest("vulnerable")), user.keys.kek)
        user.write("db", old)
        user.set("db", digest_list(digest("safe")), user.keys.kek)
        with refused(errno.EACCES):
            user.write("db", old)
        assert user.data("db") == digest_list(digest("safe"))

    @pytest.mark.cases(249)
    @user_costs(DB_BYTES)
    def test_an_equal_time_stamp_is_refused(self, user: SecureBoot) -> None:
        time = user.now()
        user.set("dbx", digest_list(digest("first")), user.keys.kek, time=time)
        with refused(errno.EACCES):
            user.set("dbx", digest_list(digest("second")), user.keys.kek, time=time)
        assert user.data("dbx") == digest_list(digest("first"))

    @pytest.mark.cases(280)
    @user_costs(DB_BYTES + TWO_LISTS_BYTES)
    def test_an_append_adds_new_entries_only(self, user: SecureBoot) -> None:
        """As the dbx updates of the UEFI Forum, which list what is known already, too."""
        user.set("dbx", digest_list(digest("known")), user.keys.kek)
        with accepted():
            user.append("dbx", digest_list(digest("known"), digest("new")), user.keys.kek)
        lists = parse_signature_lists(user.data("dbx"))
        assert [entry for found in lists for entry in found.entries] == [
            OWNER.bytes_le + digest("known"),
            OWNER.bytes_le + digest("new"),
        ]

    @pytest.mark.cases(281)
    @user_costs(TWO_LISTS_BYTES)
    @pytest.mark.parametrize("name", DATABASES)
    def test_an_append_of_what_is_there_changes_nothing(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with accepted():
            user.append(name, before, user.keys.kek)
        assert user.data(name) == before

    @pytest.mark.cases(252, 280)
    @user_costs(DB_BYTES + TWO_LISTS_BYTES)
    def test_an_append_may_be_older(self, user: SecureBoot) -> None:
        user.set("dbx", digest_list(digest("young")), user.keys.kek)
        with accepted():
            user.append("dbx", digest_list(digest("old")), user.keys.kek, time=moment(0))
        assert user.data("dbx") == digest_list(digest("young")) + digest_list(digest("old"))

    @pytest.mark.cases(279)
    @user_costs()
    @pytest.mark.parametrize("name", DATABASES)
    def test_an_append_by_a_stranger_is_refused(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with refused(errno.EACCES):
            user.append(name, digest_list(digest("strange")), user.keys.stranger)
        assert user.data(name) == before

    @pytest.mark.cases(253, 279)
    @user_costs()
    def test_an_append_must_be_signed_as_one(self, user: SecureBoot) -> None:
        before = user.data("dbx")
        data = user.update("dbx", digest_list(digest("unsaid")), user.keys.kek)
        with refused(errno.EACCES):
            user.write("dbx", data, APPENDED)
        assert user.data("dbx") == before


class TestFormat:
    """Lists that firmware must not store, rightfully signed."""

    @pytest.mark.cases(286)
    @user_costs()
    def test_pk_with_two_certificates_is_refused(self, user: SecureBoot) -> None:
        both = certificate_list(user.keys.pk.certificate, user.keys.kek.certificate)
        with refused(errno.EINVAL):
            user.set("PK", both, user.keys.pk)
        assert user.data("PK") == user.own["PK"]

    @pytest.mark.cases(287, 288, 289)
    @user_costs()
    @pytest.mark.parametrize("name", ["PK", "KEK", "db"])
    @pytest.mark.parametrize(
        "kind", ["unknown-type", "trailing-byte", "cut-short", "short-digest", "elliptic-curve"]
    )
    def test_what_is_no_list_is_refused(self, user: SecureBoot, name: str, kind: str) -> None:
        good = digest_list(digest("good"))
        payload = {
            "unknown-type": SignatureList(OWNER, (OWNER.bytes_le + bytes(32),)).pack(),
            "trailing-byte": good + b"\0",
            "cut-short": good[:-1],
            "short-digest": SignatureList(CERT_SHA256_GUID, (OWNER.bytes_le + bytes(31),)).pack(),
            "elliptic-curve": certificate_list(elliptic_certificate("curve")),
        }[kind]
        before = user.data(name)
        # For db PK's refusal would be KEK's: EDK2 tries PK first and answers for KEK.
        signer = user.keys.kek if name == "db" else user.keys.pk
        with refused(errno.EINVAL):
            user.set(name, payload, signer)
        assert user.data(name) == before


class TestRotation:
    @pytest.mark.cases(271, 273, 295)
    @user_costs(3 * KEK_BYTES + 2 * DB_BYTES)
    def test_whoever_is_in_kek_signs_databases_and_nobody_else(self, user: SecureBoot) -> None:
        with accepted():
            user.append("KEK", certificate_list(user.keys.kek2.certificate), user.keys.pk)
        for signer in (user.keys.kek2, user.keys.kek):
            with accepted():
                user.set("db", digest_list(digest("one of two")), signer)
        with accepted():
            user.set("KEK", user.own["KEK"], user.keys.pk)
        with refused(errno.EACCES):
            user.set("db", digest_list(digest("one who left")), user.keys.kek2)

    @pytest.mark.cases(271, 283)
    @user_costs(2 * PK_BYTES)
    def test_a_new_pk_by_the_old_one_which_then_has_no_say(self, user: SecureBoot) -> None:
        """As PK2-by-PK in log-file-setupmode."""
        new = user.keys.stranger
        with accepted():
            user.set("PK", certificate_list(new.certificate), user.keys.pk)
        assert user.flag("SetupMode") == b"\0"
        with refused(errno.EACCES):
            user.set("PK", user.own["PK"], user.keys.pk)
        with accepted():
            user.set("PK", user.own["PK"], new)


class TestRemoval:
    @pytest.mark.cases(282)
    @user_costs(DB_BYTES)
    @pytest.mark.parametrize("name", DATABASES)
    def test_a_database_by_kek(self, user: SecureBoot, name: str) -> None:
        with accepted():
            user.set(name, b"", user.keys.kek)
        assert not user.exists(name)

    @pytest.mark.cases(255, 282)
    @pytest.mark.pain(26)
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("PK", marks=user_costs(PK_BYTES)),
            pytest.param("db", marks=user_costs(DB_BYTES)),
            pytest.param("dbx", marks=user_costs(DB_BYTES)),
        ],
    )
    def test_by_an_unrelated_signer_as_edk2_lets_it(self, user: SecureBoot, name: str) -> None:
        """EDK2 without its policy engine takes any signed empty value: log-auth-delete-by-att."""
        with accepted():
            user.set(name, b"", user.keys.stranger)
        assert not user.exists(name)
        assert user.flag("SetupMode") == (b"\1" if name == "PK" else b"\0")

    @pytest.mark.cases(282)
    @user_costs()
    @pytest.mark.parametrize("name", NAMES)
    def test_without_any_signature_is_refused(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with refused(errno.EACCES):
            user.write(name, unsigned(b"", user.now()))
        assert user.data(name) == before

    @pytest.mark.cases(248, 283)
    @user_costs()
    @pytest.mark.parametrize("name", NAMES)
    def test_with_an_old_time_stamp_is_refused(self, user: SecureBoot, name: str) -> None:
        before = user.data(name)
        with refused(errno.EACCES):
            user.set(name, b"", user.keys.pk, time=moment(0))
        assert user.data(name) == before

    @pytest.mark.cases(269)
    @user_costs(KEK_BYTES + DB_BYTES)
    def test_without_kek_only_pk_updates_the_databases(self, user: SecureBoot) -> None:
        """EFI_NOT_FOUND is EIO in write(2). An unrelated key removes KEK as any other."""
        with accepted():
            user.set("KEK", b"", user.keys.stranger)
        with refused(errno.EIO):
            user.set("db", digest_list(digest("kek's")), user.keys.kek)
        with accepted():
            user.set("db", digest_list(digest("pk's")), user.keys.pk)
        assert user.data("db") == digest_list(digest("pk's"))


@pytest.mark.needs("efitools")
class TestEfitools:
    """The owner's tools, end to end."""

    def updatevar(self, user: SecureBoot, update: bytes) -> bool:
        """Whether efi-updatevar writes the signed update of db."""
        shell = user.board.shell
        user.known.pop("db")
        user.efivars.set_immutable("db", False, GUIDS["db"])
        shell.write_file(UPDATE_FILE, update)
        ok = shell.run(f"efi-updatevar -f {UPDATE_FILE} db").ok
        shell.run(f"rm {UPDATE_FILE}").check()
        return ok

    @pytest.mark.cases(437)
    @user_costs(DB_BYTES)
    def test_efi_updatevar_writes_a_signed_update(self, user: SecureBoot) -> None:
        payload = digest_list(digest("by a tool"))
        assert self.updatevar(user, user.update("db", payload, user.keys.kek))
        assert user.data("db") == payload

    @pytest.mark.cases(437)
    @user_costs(DB_BYTES)
    def test_efi_updatevar_says_that_a_stranger_s_is_refused(self, user: SecureBoot) -> None:
        """The tool truncates the file: where its size is 0 then, db is put back afterwards."""
        before = user.data("db")
        update = user.update("db", digest_list(digest("by a tool")), user.keys.stranger)
        assert not self.updatevar(user, update)
        assert user.data("db") == before

    @pytest.mark.cases(438)
    @user_costs(DB_BYTES)
    def test_efi_readvar_shows_the_entries(self, user: SecureBoot) -> None:
        user.set("dbx", digest_list(digest("shown")), user.keys.kek)
        shown = user.board.shell.run("efi-readvar -v dbx").check().text.lower()
        assert digest("shown").hex() in shown
        assert str(OWNER) in shown
