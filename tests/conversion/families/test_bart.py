from tests.conversion.families.generation_test import GenerationTest


class TestBart(GenerationTest):
    backbone = "BartBackbone"
