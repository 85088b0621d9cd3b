from tests.conversion.families.generation_test import GenerationTest


class TestEdRec(GenerationTest):
    backbone = "EdRecBackbone"
