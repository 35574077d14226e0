"""What is shipped: metadata, the wheel, and a tree that names no machine and no package registry."""

import configparser
import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import q_hawkeye_trl

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "q_hawkeye_trl"
NAME = "q-hawkeye-trl"
RECIPES = Path("src/q_hawkeye_trl/recipes")  # a link to recipes/

REGISTRY_HOST = re.compile(
    r"\bpypi\.(?:org|python\.org)|pythonhosted\.org|download\.pytorch\.org|anaconda\.(?:org|com)|--(?:extra-)?index-url"
)
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|work|home|Users|tmp)/[\w.]")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def names_of(requirements: str) -> set[str]:
    return {re.match(r"[\w.-]+", line).group().lower() for line in requirements.split()}


def package_data() -> list[str]:
    return setup_cfg()["options.package_data"]["q_hawkeye_trl"].split()


def listed_files() -> list[Path]:
    """The files that git has, or would take with `git add .`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_version_is_the_same_everywhere():
    version = q_hawkeye_trl.__version__
    assert setup_cfg()["metadata"]["version"] == "attr: q_hawkeye_trl.__version__"
    assert importlib.metadata.version(NAME) == version, "install the project again: make install-dev"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_setup_cfg_and_pyproject_do_not_overlap():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(pyproject) == {"build-system", "tool"}
    assert "setuptools" not in pyproject["tool"]
    assert all(name.split(".")[0] in ("metadata", "options") for name in setup_cfg().sections())


def test_every_dependency_is_pinned_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", pin) for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    options = setup_cfg()
    names = names_of(options["options"]["install_requires"]) | names_of(options["options.extras_require"]["dev"])
    names -= {NAME}
    assert names <= pinned, f"no pin for {sorted(names - pinned)}"


def test_what_the_package_imports_is_a_declared_dependency():
    from test_imports import IMPORTS

    distributions = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "skimage": "scikit-image",
        "huggingface_hub": "huggingface-hub",
    }
    used = {distributions.get(name, name) for _, others in IMPORTS.values() for name in others}
    options = setup_cfg()
    declared = names_of(options["options"]["install_requires"])
    declared |= names_of(options["options.extras_require"]["review"])  # what its page alone imports
    assert used <= declared, f"setup.cfg does not name {sorted(used - declared)}"


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()
    assert "py.typed" in package_data()


def test_all_files_beside_the_code_are_package_data():
    patterns = [pattern.replace("**/", "*") for pattern in package_data()]
    for path in listed_files():
        if path.is_relative_to(PACKAGE) and path.suffix != ".py":
            name = path.relative_to(PACKAGE).as_posix()
            assert any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), f"{name} would not be in the wheel"


@pytest.mark.parametrize("pattern", [REGISTRY_HOST, MACHINE_PATH], ids=["package registry", "path of one machine"])
def test_no_file_names_a(pattern):
    found = []
    for path in listed_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_the_patterns_see_what_they_are_for():
    dot, slash = ".", "/"
    assert REGISTRY_HOST.search(f"https://pypi{dot}org/simple")
    assert REGISTRY_HOST.search(f"https://download{dot}pytorch{dot}org/whl/cpu")
    assert MACHINE_PATH.search(f"cd {slash}home{slash}someone")
    assert MACHINE_PATH.search(f"path = '{slash}root{slash}.cache'")
    assert not MACHINE_PATH.search("examples/work/home/readme")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The Python of a fresh environment with the wheel; the dependencies are those of the running environment."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for path in listed_files():
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    (tree / RECIPES).symlink_to(os.readlink(ROOT / RECIPES))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(tree), "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # A .pth file adds its paths as they are: .pth files in them, that of an editable install among them, are not read.
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    dependencies = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    Path(own, "dependencies.pth").write_text("\n".join(dependencies) + "\n", encoding="utf-8")
    return python


def run_installed(python: Path, code: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [str(python), "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=540
    )
    assert process.returncode == 0, f"{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    return process.stdout


@pytest.mark.slow
def test_the_wheel_carries_the_bundled_policy(installed, tmp_path):
    code = (
        "import q_hawkeye_trl\n"
        "from q_hawkeye_trl.demo.policy import demo_policy_path\n"
        "path = demo_policy_path()\n"
        "print(q_hawkeye_trl.__file__, path, *sorted(file.name for file in path.iterdir()), sep='\\n')\n"
    )
    package, policy, *names = run_installed(installed, code, tmp_path).splitlines()[-50:]
    environment = installed.parents[1]
    assert Path(package).is_relative_to(environment)
    assert Path(policy).is_relative_to(environment)
    assert {"config.json", "model.safetensors"} <= set(names)


@pytest.mark.slow
def test_the_wheel_carries_the_recipes(installed, tmp_path):
    code = (
        "from q_hawkeye_trl.train.recipes import RECIPES, find_recipe\n"
        "find_recipe('koniq/qwen2_5_vl_7b'), find_recipe('zero3', 'accelerate')\n"
        "print(*sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob('*.*')), sep='\\n')\n"
    )
    listed = {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.*")}
    assert set(run_installed(installed, code, tmp_path).splitlines()) == listed


@pytest.mark.slow
def test_the_readmes_snippet_runs_with_the_wheel(installed, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL).group(1)
    run_installed(installed, snippet, tmp_path)
