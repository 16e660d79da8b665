"""What pyproject.toml cannot say: the folder configs/ is installed as the package sibp.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sibp", "sibp.*"]), "sibp.configs"],
    package_dir={"sibp.configs": "configs"},
)
