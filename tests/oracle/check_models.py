"""Checks of bench/peers/models.py and of the formula in make_fixtures.py; run by `make_fixtures.py --check`.

The models are the oracle of other tests, so they are held against what does not go through autograd: central
differences in float64, and the definitions written out by hand.
"""
import math

import torch
import torch.nn.functional as F

import make_fixtures as fixtures
from make_fixtures import models

SMALL = dict(fixtures.DEFAULTS, channels=2, height=10, width=9, rows=3, image_stream=1000)
VARIANTS = [dict(variant=variant) for variant in models.VARIANTS]
VARIANTS += [dict(variant="bn", bn_shortcut=False), dict(tau_sharing="per-block")]


def small_net(**changes):
    case = dict(SMALL, **changes)
    net = models.build(model=case["model"], variant=case["variant"], channels=case["channels"], base_width=4,
                       tau_sharing=case["tau_sharing"], bn_shortcut=case["bn_shortcut"])
    fixtures.set_start(net)
    return net.double().train(), fixtures.batch(case, 0, torch.float64)


def check_splitmix64():
    """Published outputs for the seeds 0 and 1234567, and the first values of two streams."""
    for seed, expected in ((0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)):
        got = int(fixtures.splitmix64(fixtures.np.array([seed], dtype=fixtures.np.uint64))[0])
        assert got == expected, "splitmix64(%d) = %x" % (seed, got)
    values = fixtures.uniform(1000, 100000, 0.0, 1.7)
    assert values.dtype == fixtures.np.float32 and abs(values.mean()) < 0.02
    assert -1.7 <= values.min() < -1.699 and 1.699 < values.max() < 1.7


def check_gradients():
    """Central differences of the loss for up to 3 elements of every parameter of every variant."""
    kinds = set()
    for changes in VARIANTS:
        net, (images, labels) = small_net(**changes)
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        for name, parameter in fixtures.named_parameters(net):
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
            scale = max(gradient.abs().max().item(), 1e-3)
            for i in {0, flat.numel() // 2, flat.numel() - 1}:
                difference = central_difference(net, images, labels, flat, i)
                error = abs(difference - gradient[i].item()) / scale
                assert error < 1e-6, "%s %s[%d]: error %.1e" % (changes, name, i, error)
            kinds.add(name.rsplit(".", 1)[-1])
    assert {"tau", "alpha", "scale", "bias1", "bias2", "bias1a", "bias2b", "weight", "bias"} <= kinds


def central_difference(net, images, labels, flat, i, step=1e-6):
    value, losses = flat[i].item(), []
    for shifted in (value - step, value + step):
        flat[i] = shifted
        with torch.no_grad():
            losses.append(F.cross_entropy(net(images), labels).item())
    flat[i] = value
    return (losses[1] - losses[0]) / (2 * step)


def check_batch_norm():
    """eps 1e-5, biased variance in the batch, unbiased in the running average, momentum 0.1."""
    norm = models.build("resnet8", "bn").bn1.double().train()
    x = torch.randn(5, 16, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(1, 2)
        norm.weight.uniform_(), norm.bias.uniform_()
    old_mean, old_var = norm.running_mean.clone(), norm.running_var.clone()
    count, mean = 5 * 3 * 4, x.mean((0, 2, 3))
    biased = ((x - mean.view(1, -1, 1, 1)) ** 2).mean((0, 2, 3))

    def normalise(mean, var):
        scaled = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1) + 1e-5)
        return scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)

    torch.testing.assert_close(norm(x), normalise(mean, biased))
    torch.testing.assert_close(norm.running_mean, 0.9 * old_mean + 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 * old_var + 0.1 * biased * count / (count - 1))
    torch.testing.assert_close(norm.eval()(x), normalise(norm.running_mean, norm.running_var))


def check_blocks():
    """A stage-changing block whose convolutions are zero shows its shortcut and where its last bias stands."""
    x = torch.rand(2, 4, 5, 6, dtype=torch.float64)
    expected_scale = {"tau": 0.25, "alpha": 1.5 / 3, "skipinit": 1.5, "plain": 1.0, "fixup": 1.0}
    for variant, scale in expected_scale.items():
        net, _ = small_net(variant=variant)
        block = net.layer2[0]
        with torch.no_grad():
            block.conv1.weight.zero_(), block.conv2.weight.zero_()
            block.bias1a.fill_(0.5), block.bias2b.fill_(0.125)
            for name in ("tau", "alpha"):
                if hasattr(block, name):
                    getattr(block, name).fill_(scale if name == "tau" else 1.5)
            y = block(x)
        kept = x[:, :, ::2, ::2] + (0.5 if variant == "fixup" else 0)
        torch.testing.assert_close(y[:, :4], kept + scale * 0.125)
        torch.testing.assert_close(y[:, 4:], torch.full_like(y[:, 4:], scale * 0.125))
    for variant in models.NORM_VARIANTS:  # the shortcut's norm sees the subsampled tensor
        net, _ = small_net(variant=variant)
        block = net.layer2[0]
        with torch.no_grad():
            block.bn2.weight.zero_(), block.bn2.bias.zero_()
            y = block(x)
            expected = F.relu(F.batch_norm(x[:, :, ::2, ::2], None, None, block.downsample[1].weight,
                                           block.downsample[1].bias, training=True))
        torch.testing.assert_close(y[:, :4], expected)
        assert not y[:, 4:].any()


def check_padding():
    """conv(x + b) pads x + b with true zeros: the border of conv1 must not see the bias outside the image."""
    net, _ = small_net(variant="plain")
    block = net.layer1[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.conv1.weight.fill_(1), block.bias1a.fill_(1)
        block.conv2.weight[:, :, 1, 1] = 0.25
        y = block(torch.zeros(1, 4, 4, 4, dtype=torch.float64))
    assert y[0, 0, 0, 0] == 4 * 4 and y[0, 0, 0, 1] == 6 * 4 and y[0, 0, 1, 1] == 9 * 4


def check_tau_and_names():
    net, (images, labels) = small_net()
    single, _ = small_net(tau_sharing="per-block")
    names = set(net.state_dict())
    assert {"tau", "layer1.0.tau", "layer3.0.tau", "layer2.0.bias2b", "fc.bias"} <= names
    assert len(names) == 1 + 1 + 3 * (2 + 4 + 1) + 2 and len(dict(net.named_parameters())) == len(names) - 3
    assert net.state_dict()["layer2.0.tau"].data_ptr() == net.tau.data_ptr()
    with torch.no_grad():
        for name, parameter in single.named_parameters():
            parameter.copy_(net.state_dict()[name])
    for one in (net, single):
        F.cross_entropy(one(images), labels).backward()
        models.average_tau_gradient(one)
    mean = sum(getattr(single, "layer%d" % stage)[0].tau.grad for stage in (1, 2, 3)) / 3
    torch.testing.assert_close(net.tau.grad, mean)
    names = set(models.build("resnet14", "bn").state_dict())
    assert {"bn1.running_mean", "layer1.1.bn2.num_batches_tracked", "layer2.0.downsample.1.running_var"} <= names
    assert "layer2.1.downsample.1.weight" not in names
    assert not any("downsample" in name for name in models.build("resnet14", "bn", bn_shortcut=False).state_dict())
    assert {"bias1", "bias2", "layer1.0.scale"} <= set(models.build("resnet8", "fixup").state_dict())


def check_sgd():
    """v = mu v + g + wd w; w -= lr v, twice, with the scalar group's smaller lr."""
    net, (images, labels) = small_net(variant="fixup")
    optimizer = torch.optim.SGD(models.parameter_groups(net, 0.1, 0.1), lr=0.1, momentum=0.9, weight_decay=1e-2)
    expected = {name: (p.detach().clone(), torch.zeros_like(p)) for name, p in net.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        for name, parameter in net.named_parameters():
            w, v = expected[name]
            v = 0.9 * v + parameter.grad + 1e-2 * w
            small = name.split(".")[-1].startswith("bias") and name != "fc.bias" or name.endswith("scale")
            expected[name] = (w - (0.01 if small else 0.1) * v, v)
        optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name][0], msg=name)


def check_initialisation():
    torch.manual_seed(0)
    net = models.build("resnet20", "tau")
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            assert abs(module.weight.std() * math.sqrt(9 * module.out_channels / 2) - 1) < 0.06
    assert abs(net.tau.item() - 1 / 3) < 1e-7 and net.fc.weight.abs().max() <= 1 / 8
    fixup = models.build("resnet20", "fixup")
    ratio = fixup.layer3[1].conv1.weight.std() / net.layer3[1].conv1.weight.std()
    assert abs(ratio * 3 - 1) < 0.03 and not fixup.layer1[0].conv2.weight.any() and not fixup.fc.weight.any()
    assert 0.18 < fixup.conv1.weight.abs().max() <= 1 / math.sqrt(27)
    assert sum(p.numel() for p in models.build("resnet20", "bn", bn_shortcut=False).parameters()) == 269722
    for bad in ("resnet21", "resnet2", "resnet", "vgg"):
        try:
            models.build(bad)
        except ValueError:
            continue
        raise AssertionError("%s was accepted" % bad)


def run():
    for check in (check_splitmix64, check_gradients, check_batch_norm, check_blocks, check_padding,
                  check_tau_and_names, check_sgd, check_initialisation):
        check()
        print("%-22s ok" % check.__name__)
