import keras
import keras_hub
import pytest

WORDS = ["good", "fine", "great", "bad", "dull", "poor", "film", "very"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A folder with a tiny BERT and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("preset"))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    keras.utils.set_random_seed(0)
    keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
    ).save_to_preset(folder)
    keras_hub.models.BertTokenizer(vocabulary).save_to_preset(folder)
    return folder


@pytest.fixture
def csv_path(tmp_path):
    return write_csv(tmp_path)


def write_csv(folder, num_rows=20):
    path = folder / "texts.csv"
    rows = ["label,text"]
    for index in range(num_rows // 2):
        rows.append(f'praise,"{WORDS[index % 3]} film, very"')
        rows.append(f"blame,{WORDS[3 + index % 3]} film")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)
