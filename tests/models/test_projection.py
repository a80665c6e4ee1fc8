import pytest
import torch

from crosspair.errors import UserError
from crosspair.models.config import ProjectionConfig
from crosspair.models.projection import Projection, create_projection


def test_training_normalises_each_dimension_over_the_batch():
    torch.manual_seed(0)
    net = Projection(6, 3, eps=1e-3).double()
    features = torch.randn(20, 6).double()
    linear = features @ net.linear.weight.T
    expected = (linear - linear.mean(0)) / (linear.var(0, unbiased=False) + 1e-3).sqrt()
    torch.testing.assert_close(net(features), expected, rtol=1e-12, atol=1e-12)


def test_evaluation_uses_the_running_statistics():
    torch.manual_seed(0)
    net = Projection(6, 3, momentum=0.25).double()
    features = torch.randn(20, 6).double()
    linear = features @ net.linear.weight.T
    net(features)
    torch.testing.assert_close(net.norm.running_mean, 0.25 * linear.mean(0))
    torch.testing.assert_close(net.norm.running_var, 0.75 + 0.25 * linear.var(0))
    net.eval()
    expected = (linear - net.norm.running_mean) / (net.norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(net(features), expected)


def test_embeddings_stay_float32_under_bf16_autocast():
    torch.manual_seed(0)
    net = Projection(6, 3)
    features = torch.randn(20, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.linear(features, net.linear.weight).dtype == torch.bfloat16
        embeddings = net(features)
        assert net(features.bfloat16()).dtype == torch.float32
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, net(features))


def test_there_is_no_bias_beside_the_offset():
    names = {name for name, _ in Projection(6, 3).named_parameters()}
    assert names == {"linear.weight", "norm.weight", "norm.bias"}


def test_the_cosine_of_heads_is_the_mean_of_their_cosines():
    torch.manual_seed(0)
    projection = create_projection(6, ProjectionConfig(dim=12, layers=2, heads=3, hidden_dim=5), "image").eval()
    features = torch.randn(7, 6)
    embeddings = projection(features)
    assert embeddings.shape == (7, 12)
    cosines = torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(embeddings).T
    alone = [torch.nn.functional.normalize(head(features)) for head in projection.heads]
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(cosines, torch.stack([each @ each.T for each in alone]).mean(0))


@pytest.mark.parametrize("settings", [{"dim": 10, "heads": 3}, {"dim": 6, "heads": 0}, {"layers": 0, "heads": 2}])
def test_heads_that_cannot_be_are_refused(settings):
    with pytest.raises(UserError, match="expected at least 1 head, a multiple of heads as dim"):
        create_projection(6, ProjectionConfig(**settings), "image")
