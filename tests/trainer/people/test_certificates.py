import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.conftest import REPOSITORY
from tests.trainer.run_folders import full_run, person
from trainer.cli import cli
from trainer.configuration.sections import ModelConfig
from trainer.people.certificates import FAILED, NOT_ATTACKED, issue, verify
from trainer.people.fingerprints import fingerprints, weights_before
from trainer.people.roster import read_roster

NAMES = ["Quentin Oldcastle", "Rosamund Verity", "Ismael Duquesne"]
WEIGHTS = REPOSITORY / "plugins/fictitious/clip"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def key(tmp_path) -> tuple[Path, Path]:
    """Private and public, as an operator makes them."""
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture
def run(tmp_path) -> Path:
    """Of a run that was to forget three people, two of whom were attacked."""
    roster = tmp_path / "requests.csv"
    roster.write_text("name\n" + "\n".join(NAMES) + "\n")
    config = {
        "model": {"name": f"local-dir:{WEIGHTS}"},
        "objectives": {
            "keep": {"kind": "preserve"},
            "names": {"kind": "name_to_person", "roster": str(roster)},
        },
        "evaluations": {
            "identity_inference": {
                "kind": "identity_inference",
                "every": 10,
                "pictures": 20,
                "groups": {"forget": "a/b.csv"},
            },
            "aliases": {"kind": "identity_inference"},
        },
    }
    attacked = [person(one.pseudonym, "forget", 21, 0) for one in read_roster(roster)[:2]]
    folder = full_run(tmp_path, config=yaml.safe_dump(config), identities=3)
    (folder / "people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in attacked))
    (folder / "model").mkdir()
    (folder / "model/open_clip_model.safetensors").write_bytes(b"the student's weights")
    results = json.loads((folder / "results.json").read_text())
    results["fingerprints"] = fingerprints(config, folder)
    results["before"]["identity_inference/aliases/forget/tpr"] = 0.5  # and failed afterwards
    assert len(results["fingerprints"]) == 3
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def sealed(run, key, tmp_path) -> dict[str, Path]:
    """The certificates by name, their files."""
    assert issue(run, key[0], tmp_path / "sealed") == 3
    people = read_roster(tmp_path / "requests.csv")
    return {one.name: tmp_path / "sealed" / f"{one.pseudonym}.json" for one in people}


def test_a_certificate_says_what_was_found_of_which_model(sealed, key):
    found = verify(sealed[NAMES[0]], key[1])
    assert found["identity"] == sealed[NAMES[0]].stem
    assert found["found"] == [
        {
            "measure": "identity_inference/people",
            "group": "forget",
            "before": {"prompts_won": 21},
            "after": {"prompts_won": 0},
        }
    ]
    before = WEIGHTS / "open_clip_model.safetensors"
    assert found["model"]["weights_sha256"] == {
        "before": hashlib.sha256(before.read_bytes()).hexdigest(),
        "after": hashlib.sha256(b"the student's weights").hexdigest(),
    }
    assert found["code"]["run"] == {"version": "0.1.0", "commit": "0123abc"}
    assert "not a guarantee" in found["limits"]


def test_it_says_what_each_evaluation_gave_of_everybody_and_which_gave_nothing(sealed, key):
    found = verify(sealed[NAMES[0]], key[1])["evaluations"]
    assert found.keys() == {"identity_inference", "aliases"}
    attack = found["identity_inference"]
    assert (attack["kind"], attack["pictures"]) == ("identity_inference", 20)
    assert attack["before"]["forget/tpr"] == 1 and attack["after"]["forget/tpr"] < 0.1
    assert "forget/prompts_won" not in attack["after"] and "groups" not in attack
    assert found["aliases"]["before"] == {"forget/tpr": 0.5}
    assert found["aliases"]["after"] == FAILED


def test_who_was_not_attacked_is_told_so(sealed, key):
    assert verify(sealed[NAMES[2]], key[1])["found"] == NOT_ATTACKED


def test_no_name_stands_in_any_file(sealed):
    for path in sealed[NAMES[0]].parent.iterdir():
        content = path.read_bytes().lower()
        assert not any(part.encode() in content for n in NAMES for part in n.lower().split())


def test_openssl_agrees(sealed, key):
    path = sealed[NAMES[0]]
    check = ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", key[1], "-sigfile"]
    assert openssl(*check, f"{path}.sig", "-in", path).returncode == 0
    path.write_bytes(path.read_bytes().replace(b'"prompts_won": 0', b'"prompts_won": 9'))
    assert openssl(*check, f"{path}.sig", "-in", path).returncode != 0


def test_any_changed_byte_is_refused(sealed, key):
    path = sealed[NAMES[0]]
    for file in (path, path.with_name(path.name + ".sig")):
        content = file.read_bytes()
        for i in range(len(content)):
            file.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
            with pytest.raises(ValueError, match="is not what was signed"):
                verify(path, key[1])
        for changed in (content[:-1], content + b" ", content + b"\n"):
            file.write_bytes(changed)
            with pytest.raises(ValueError, match="is not what was signed"):
                verify(path, key[1])
        file.write_bytes(content)
    verify(path, key[1])


def test_another_key_and_another_persons_signature_are_refused(sealed, key, tmp_path):
    path = sealed[NAMES[0]]
    other, public = tmp_path / "other.pem", tmp_path / "other_public.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", other)
    openssl("pkey", "-in", other, "-pubout", "-out", public)
    with pytest.raises(ValueError, match="the key is another; ask its issuer"):
        verify(path, public)
    signature = path.with_name(path.name + ".sig")
    shutil.copy(sealed[NAMES[1]].with_name(sealed[NAMES[1]].name + ".sig"), signature)
    with pytest.raises(ValueError, match="is not what was signed"):
        verify(path, key[1])
    signature.unlink()
    with pytest.raises(FileNotFoundError, match="is not there; a certificate is it and its .sig"):
        verify(path, key[1])


def test_one_person_alone_can_be_asked_for(run, key, tmp_path):
    one = read_roster(tmp_path / "requests.csv")[1].pseudonym
    assert issue(run, key[0], tmp_path / "one", one) == 1
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        f"{one}.json",
        f"{one}.json.sig",
    ]


def test_somebody_else_is_refused(run, key, tmp_path):
    with pytest.raises(ValueError, match="is none of the 3 people whom .* was to forget; give a"):
        issue(run, key[0], tmp_path / "one", "0" * 16)


def test_rosters_that_changed_since_are_refused(run, key, tmp_path):
    """Also where they name as many people as before."""
    (tmp_path / "requests.csv").write_text("\n".join(["name", *NAMES[:2], "Somebody Later"]))
    with pytest.raises(ValueError, match="the requests are others now than when it ran; cert"):
        issue(run, key[0], tmp_path / "sealed")
    assert not (tmp_path / "sealed").exists()


def test_weights_that_changed_since_are_refused(run, key, tmp_path):
    (run / "model/open_clip_model.safetensors").write_bytes(b"another run's weights")
    with pytest.raises(ValueError, match="the weights after are others now than when it ran"):
        issue(run, key[0], tmp_path / "sealed")


def attacked_elsewhere(
    run: Path, folder: Path, group: str = "forget", names: Sequence[str] = NAMES
) -> Path:
    """The attack's roster is in a folder with a key of its own, as its people's rows are."""
    folder.mkdir()
    roster = folder / "attack.csv"
    roster.write_text("name\n" + "\n".join(names) + "\n")
    rows = [person(one.pseudonym, group, 21, 0) for one in read_roster(roster)[:2]]
    (run / "people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluations"]["identity_inference"]["groups"] = {group: str(roster)}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return roster


ELSEWHERE = r"group \w+ \(.*attack.csv\) and the requests have other pseudonyms.* put both rosters"


@pytest.mark.parametrize("group", ["forget", "asked"])
def test_who_was_attacked_by_another_pseudonym_is_not_said_to_be_not(run, key, tmp_path, group):
    attacked_elsewhere(run, tmp_path / "other", group)
    with pytest.raises(ValueError, match=ELSEWHERE) as caught:
        issue(run, key[0], tmp_path / "sealed")
    assert "\n" not in str(caught.value) and not (tmp_path / "sealed").exists()


def test_who_was_attacked_by_an_alias_is_not_said_to_be_not(run, key, tmp_path):
    """By the same key, and as somebody else: a pseudonym is of the name that stands first."""
    (tmp_path / "requests.csv").write_text("name,aliases\nMaria Smith,Maria Jones\n")
    results = json.loads((run / "results.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    results["fingerprints"] = fingerprints(config, run)
    (run / "results.json").write_text(json.dumps(results))
    roster = attacked_elsewhere(run, tmp_path / "other", names=["Maria Jones"])
    shutil.copy(tmp_path / "pseudonyms.key", tmp_path / "other")
    with pytest.raises(ValueError, match=ELSEWHERE):
        issue(run, key[0], tmp_path / "sealed")
    roster.write_text("name\nMaria Smith\n")
    row = person(read_roster(roster)[0].pseudonym, "forget", 21, 0)
    (run / "people.jsonl").write_text(json.dumps(row) + "\n")
    assert issue(run, key[0], tmp_path / "sealed") == 1


def test_a_key_that_was_copied_after_the_run_does_not_help(run, key, tmp_path):
    attacked_elsewhere(run, tmp_path / "other")
    shutil.copy(tmp_path / "pseudonyms.key", tmp_path / "other")
    with pytest.raises(ValueError, match=ELSEWHERE):
        issue(run, key[0], tmp_path / "sealed")


def test_an_attack_whose_roster_of_another_key_is_gone_is_refused(run, key, tmp_path):
    attacked_elsewhere(run, tmp_path / "other").unlink()
    with pytest.raises(ValueError, match=ELSEWHERE):
        issue(run, key[0], tmp_path / "sealed")


def test_a_roster_elsewhere_with_the_same_key_or_of_other_people_is_none_of_that(
    run, key, tmp_path
):
    rows = (run / "people.jsonl").read_text()
    roster = attacked_elsewhere(run, tmp_path / "other")
    shutil.copy(tmp_path / "pseudonyms.key", tmp_path / "other")
    (run / "people.jsonl").write_text(rows)
    assert issue(run, key[0], tmp_path / "sealed") == 3
    (tmp_path / "other/pseudonyms.key").write_bytes(bytes(32))
    roster.write_text("name\nSomebody Else\n")
    rows += json.dumps(person(read_roster(roster)[0].pseudonym, "forget", 21, 0)) + "\n"
    (run / "people.jsonl").write_text(rows)
    assert issue(run, key[0], tmp_path / "sealed") == 3


def test_a_run_that_nobody_asked_for_is_refused(run, key, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["objectives"]["names"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="no objective of the run has a roster"):
        issue(run, key[0], tmp_path / "sealed")


def test_a_run_without_a_model_is_refused(run, key, tmp_path):
    shutil.rmtree(run / "model")
    with pytest.raises(FileNotFoundError, match="holds no weights; certificates are of runs that"):
        issue(run, key[0], tmp_path / "sealed")


def test_keys_that_cannot_sign_are_refused_with_what_to_do(run, tmp_path):
    key = tmp_path / "key.pem"
    with pytest.raises(FileNotFoundError, match="is not there; make one: openssl genpkey"):
        issue(run, key, tmp_path / "sealed")
    key.write_text("nothing")
    with pytest.raises(ValueError, match="is no private key in PEM; make one: openssl genpkey"):
        issue(run, key, tmp_path / "sealed")
    openssl("genpkey", "-algorithm", "x25519", "-out", key)
    with pytest.raises(ValueError, match="is no Ed25519 key; make one"):
        issue(run, key, tmp_path / "sealed")
    openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", key)
    with pytest.raises(ValueError, match="is encrypted; decrypt it for the time of issuing"):
        issue(run, key, tmp_path / "sealed")
    assert not (tmp_path / "sealed").exists()


def test_keys_that_cannot_verify_are_refused_with_what_to_do(sealed, tmp_path):
    path, public = sealed[NAMES[0]], tmp_path / "no.pem"
    with pytest.raises(FileNotFoundError, match="is not there; its owner makes it: openssl pkey"):
        verify(path, public)
    public.write_text("nothing")
    with pytest.raises(ValueError, match="is no public key in PEM; its owner makes it"):
        verify(path, public)
    other = tmp_path / "other.pem"
    openssl("genpkey", "-algorithm", "x25519", "-out", other)
    openssl("pkey", "-in", other, "-pubout", "-out", public)
    with pytest.raises(ValueError, match="is no Ed25519 public key; its owner makes it"):
        verify(path, public)


def test_weights_that_cannot_be_had_are_told(run, key, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] = {"name": "ViT-B-32-quickgelu", "pretrained": "laion400m_e32"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="laion400m_e32 of ViT-B-32-quickgelu are not here, nor"):
        issue(run, key[0], tmp_path / "sealed")


def test_a_model_may_be_named_as_openai_does(monkeypatch):
    asked = []
    fetched = lambda config: asked.append(config["url"]) or "weights.pt"  # noqa: E731
    monkeypatch.setattr("trainer.people.fingerprints.download_pretrained", fetched)
    for name in ("ViT-B/32", "ViT-B-32"):
        assert weights_before(ModelConfig(name=name, pretrained="laion400m_e32")) == Path(
            "weights.pt"
        )
    assert len(set(asked)) == 1


def test_what_is_signed_and_no_certificate_is_refused(sealed, key):
    path = sealed[NAMES[0]]
    path.write_text('{"format": "another"}')
    beside = path.with_name(path.name + ".sig")
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", key[0], "-in", path, "-out", beside)
    with pytest.raises(ValueError, match="is signed, but no certificate of this version"):
        verify(path, key[1])


def test_the_command_issues_and_checks(run, key, tmp_path):
    private, public = map(str, key)
    into = str(tmp_path / "sealed")
    done = CliRunner().invoke(cli, ["certificate", str(run), "--key", private, "--into", into])
    assert done.output == f"3 certificates in {into}\n"
    [path, *_] = sorted(Path(into).glob("*.json"))
    check = ["certificate", "--verify", str(path), "--public-key", public]
    told = CliRunner().invoke(cli, check).output
    weights = hashlib.sha256(b"the student's weights").hexdigest()
    assert told.startswith(f"sealed as it is, of {path.stem}, ") and weights in told
    path.write_text("{}")
    assert isinstance(CliRunner().invoke(cli, check).exception, ValueError)
