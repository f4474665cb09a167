"""Digests of every example: artifacts and leaderboard rows of existing labs are found by them."""

from pathlib import Path

import pytest

from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.fills import parse_fill
from grafting_core.specs.documents.parsing import read_document
from grafting_core.specs.studies.parsing import parse_study

EXAMPLES = Path(__file__).parents[3] / "examples"
DIGESTS = {
    "depth-to-width.yaml": "0d82d65a7264d7d9e0ea991a7532fd6ac0f86001b1eef519e9d17ddda007ab3c",
    "fill-attention.yaml": "8d77f4fdb84da1263a97d17674400e666cb9701a7dc578008e013b3692b2498c",
    "hyena-x-half.yaml": "b5d8e92196f781ece0d6afd118dc064f45f5bb6680a03be43b87137a10406e51",
    "mlp-ratio-3-half.yaml": "adf7af2c14b9042f194333bfad3e55706649d3048d19234a0f09b5034d375a11",
    "studies/demo.yaml": "53d11e0e6217e1c20fa7815830b7981671baf19325cab40156d1511fb90265f4",
    "studies/fast-and-good.yaml": "41f22701c06cb08dade0ed10c43359ee36604f4b23e43a225734e26f55fee42a",
    "studies/latency.yaml": "ff938f16e1891b2635e0392eacf1897d4772d27186c431acb33d05e0d609bf3f",
    "table4/baseline.yaml": "d89cf51ffe68f08a8ec3eb08d19ae9be81ef8590a5fd6a486277f61c344a152c",
    "table4/hyena-se-100.yaml": "14644187921c29eb9b140ab909f9d2d71a7693b25bb2b6feb3c8558d9dbd8e89",
    "table4/hyena-se-50.yaml": "2e12807af6c27e4d38a9b0aa49dd794d68cbc366a8df44d4a1d3dec5bdfc20a0",
    "table4/hyena-se-75.yaml": "fe6f4f10512786e36eb32ebfa7f2db6cc082a346745df180910409fe6b544e4c",
    "table4/hyena-x-100.yaml": "d5087f463d6c82aea6e843c508aaaa299b91319bb593b73a027a555adb28a3a5",
    "table4/hyena-x-50.yaml": "8728c63d8103b817d1e75b3c3217abfd2939fa9a0ba01d962034895e4be4c7dd",
    "table4/hyena-x-75.yaml": "9884a78734b62c3303eb77c3dbc0f523678fbe1d7dd39af2438a36d83190bcae",
    "table4/hyena-y-100.yaml": "38bfdb64cdf9e08d06cea6d1f173ffd2880e5336f3a0add370770f69df2503cb",
    "table4/hyena-y-50.yaml": "739fc63a10af6029a99214b88fd3cfc19b501ba339b72e1f6d35eb98621132c7",
    "table4/hyena-y-75.yaml": "c5c6746fcd7a4ad9e6a1855504ce84d46fba9a6ac2e6102048c10bb2ebbeeb64",
    "table4/mamba2-100.yaml": "0cf7c39ac47e92066b86a16f59709cecaf1392ed676d078376c123aa33b5f93b",
    "table4/mamba2-50.yaml": "9d0e781ea7ef4f50c49d206c068d0964e9163b2e21b8a58867e87da3c4a2ae82",
    "table4/mamba2-75.yaml": "bd79e97ac9a6975adc21d6dadabefc4a4b5cdfe96180ce12a97e2f4d1ec89082",
    "table4/mha-random-100.yaml": "803ce9516ab2c8cb0af685cfda8d3e515afc5a378530095f823d7f09d9ebc187",
    "table4/mha-self-graft-100.yaml": "d8a197783f5e3e2880e72221418a6d2cd871d7c0ed7c27c6c2dbcd31d2bc8abf",
    "table4/mlp-hyena-x-100.yaml": "a291bfc6e07d8a700cf57777d7b40a6cd728d8d0f0ea0b94a6006b24132936fd",
    "table4/mlp-hyena-x-50.yaml": "9f072dadadfc4bba75bf39d7ef28e2f90eaf9bf89d077c47d612af962ecba445",
    "table4/mlp-hyena-x-75.yaml": "b488139d91ced576fb87642c632371d75459ee62a680e0bf8ddc8667cee5b4b4",
    "table4/mlp-random-100.yaml": "ce55f34ecfeae4499c499732ef9d7631e1753fe9ef28762c769d3691b91f9dfe",
    "table4/mlp-ratio-3-100.yaml": "657985879d681091bc2d211b905bb5985e7c62608f0bdf83f63e0b1d9b170099",
    "table4/mlp-ratio-3-50.yaml": "5dacd85a8c026ca8d3e39039d14489bf7676f0b26803cc110b9d6c599b60f33e",
    "table4/mlp-ratio-3-75.yaml": "0cd6b0273950695ba27f20ddf4376639839a743498ae18535d1097dc4d03db40",
    "table4/mlp-ratio-6-100.yaml": "80f1eb1fed3ea38eeee72b77ba28e58b5a09d3e0c98ab4422d2767fa986ad1fc",
    "table4/mlp-ratio-6-50.yaml": "adeffe7cb53eea1ea0a910525a90f615762b07465b2b1b0784531b1e18ce0241",
    "table4/mlp-ratio-6-75.yaml": "32751216d57aecd82c578c2c6726fd0c3c85aa220e2d9d09955be8d8fd377caf",
    "table4/mlp-self-graft-100.yaml": "4ad734e68761b08922b22305440c1f53b880d158539b90b86aa7ac6874eb84ad",
    "table4/swa-100.yaml": "efcaed7aef282dff1d5e67d429eb39273e7ffa7ffe7c8f03ddb6a7854f58fcd3",
    "table4/swa-50.yaml": "e35169acbcf5de02626cca2860c5ab5e6eb754c677dbd80e66813536e44db82b",
    "table4/swa-75.yaml": "178765b7beabbc9957feb9c361dd2e684d32b5e8668ee4943388f8d698e25cf2",
    "table6/parallel-100.yaml": "886119c2ffe6531ecccfea261de796523292afd78861c98fb2a9f9ffacdc4d09",
    "teacher.yaml": "9dff6fc2e9d314a9133d1b1ef3ef02ee8b9f5e70db4618e8d6c609b4cb8c2a52",
    "window-half.yaml": "a61e276c1c15a397686d0818810ee06c6153773129376fa2f4c2b9bfd013dfe1",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_digest_of_an_example_stays(name: str) -> None:
    document = read_document((EXAMPLES / name).read_text())
    if name.startswith("studies/"):
        spec = parse_study(document)
    elif name.startswith("fill-"):
        spec = parse_fill(document)
    else:
        spec = parse_submission(document)
    assert spec.digest == DIGESTS[name]
