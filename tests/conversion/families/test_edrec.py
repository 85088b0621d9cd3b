from tests.backend_helpers import slow_to_compile
from tests.conversion.families.generation_test import GenerationTest


@slow_to_compile
class TestEdRec(GenerationTest):
    backbone = "EdRecBackbone"
