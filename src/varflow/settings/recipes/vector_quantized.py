"""Vector-quantized autoencoders, alone and with a prior over their codes, after henrhoi/vae-pytorch."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_SOURCE = "van den Oord, Vinyals and Kavukcuoglu 2017; vq_vae.py of henrhoi/vae-pytorch"
_DIFFERS = (
    "group normalisation, which couples no examples, instead of batch normalisation (--normalization batch); sums in "
    "nats with a commitment weight of 0.25 instead of means with 1; a gaussian with a learned scale, so that "
    "bits/dim are a bound (--scale 1 for the program's squared error up to constants); dequantization fresh at each "
    "access; restarts of dead codes; pixels in [-1, 1] as the program's text says "
    "(--protocol logit for what its code does)"
)
_PRIOR = (
    "; the codes of a finished quantizer are cached and the prior has an optimizer of its own; layer norms over "
    "channels instead of batch statistics, which let a position see later ones"
)

_QUANTIZER = RunSpec().replace(
    data="cifar10",
    protocol="symmetric",
    network="grid",
    scales=2,
    blocks=2,
    posterior="quantizer",
    codes=128,
    code_features=256,
    prior="uniform-codes",
    likelihood="gaussian",
    initial_scale=0.25,
    batch=128,
    lr=1e-3,
    epochs=40,
)

VQ_VAE = Recipe(
    "vq-vae",
    "vector-quantized autoencoder, 128 codewords of 256 features, two halvings; the codes under a uniform prior",
    _QUANTIZER,
    _SOURCE,
    _DIFFERS,
)

VQ_PIXELCNN = Recipe(
    "vq-pixelcnn",
    "the same, then a PixelCNN of ten residual blocks over its codes",
    _QUANTIZER.replace(
        prior="pixelcnn",
        prior_channels=64,
        prior_length=10,
        prior_kernel=7,
        prior_hidden=512,
        prior_epochs=30,
        prior_batch=128,
        prior_lr=1e-3,
    ),
    _SOURCE + "; van den Oord, Kalchbrenner and Kavukcuoglu 2016",
    _DIFFERS + _PRIOR,
)

VQ_GATED_PIXELCNN = Recipe(
    "vq-gated-pixelcnn",
    "the same, then a Gated PixelCNN of thirteen layers over its codes",
    _QUANTIZER.replace(
        batch=64,
        lr=8e-4,
        epochs=30,
        prior="gated-pixelcnn",
        prior_channels=256,
        prior_length=13,
        prior_kernel=7,
        prior_hidden=512,
        prior_epochs=30,
        prior_batch=64,
        prior_lr=8e-4,
    ),
    "van den Oord et al. 2016b; vq_vae_gated_pixelcnn_prior.py of henrhoi/vae-pytorch",
    _DIFFERS + _PRIOR + "; skip connections into a 1×1 head of 512 channels, as in the paper",
)
