from tests.conversion.families.generation_test import GenerationTest


class TestMoonshine(GenerationTest):
    backbone = "MoonshineBackbone"
