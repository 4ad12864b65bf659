"""The built-in implementations, registered through the public hooks like everybody else's. Imports nothing heavy."""

from __future__ import annotations

from certframe.hookspecs import Register, hookimpl


@hookimpl
def certframe_models(register: Register) -> None:
    """A model small enough for tests."""
    register("digits", "certframe.models.digits:Digits", "small convolutional net on 8×8 digits, weights included")


@hookimpl
def certframe_attributors(register: Register) -> None:
    """Methods that need only torch."""
    for name, target, summary in (
        ("gradient", "gradient:Gradient", "absolute input gradient (saliency)"),
        ("input-x-gradient", "gradient:InputXGradient", "input times gradient"),
        ("smoothgrad", "gradient:SmoothGrad", "mean gradient over noisy inputs"),
        ("vargrad", "gradient:VarGrad", "variance of the gradient over noisy inputs"),
        ("guided-backprop", "guided:GuidedBackprop", "gradient that only rises through rectifiers"),
        ("integrated-gradients", "path:IntegratedGradients", "mean gradient on the way from a constant image"),
        ("deeplift", "deeplift:DeepLift", "contributions to the difference from a constant image, by the rescale rule"),
        ("occlusion", "occlusion:Occlusion", "fall of the logit when a patch is covered"),
        ("cam", "cam:Cam", "class activation map"),
        ("grad-cam", "cam:GradCam", "gradient-weighted class activation map"),
        ("grad-cam++", "cam:GradCamPlusPlus", "class activation map with pixelwise-weighted positive gradients"),
        ("layer-cam", "cam:LayerCam", "class activation map weighted pixel by pixel"),
        ("ablation-cam", "ablation:AblationCam", "class activation map weighted by leaving feature maps out"),
        ("score-cam", "ablation:ScoreCam", "class activation map weighted by the score of masked inputs"),
        ("random", "control:Random", "random scores, a control"),
    ):
        register(name, f"certframe.attributors.{target}", summary)


@hookimpl
def certframe_sparsifiers(register: Register) -> None:
    """What is counted."""
    register("top-k", "certframe.sparsifiers.top_k:TopK", "1 for the K % most important pixels, several nested K")
    register("sparsified", "certframe.sparsifiers.real:Sparsified",
             "1 for the τN largest scores (SmoothGrad, sparsified)")
    register("relaxed", "certframe.sparsifiers.real:Relaxed",
             "1 for the γN largest, 0 below the τN largest, linear between")
    register("scaled", "certframe.sparsifiers.real:Scaled", "the map divided by its maximum")
    register("quadratic", "certframe.sparsifiers.real:Quadratic", "the squared map divided by its maximum")
    register("threshold", "certframe.sparsifiers.threshold:Threshold", "1 where the score exceeds a threshold")


@hookimpl
def certframe_certifiers(register: Register) -> None:
    """Proofs from counts."""
    register("pixel", "certframe.certifiers.pixel:Pixel", "label of every pixel within one l2 radius, fixed n")
    register("adaptive", "certframe.certifiers.adaptive:Adaptive", "label of every pixel, as many copies as it takes")
    register("radius", "certframe.certifiers.radius:Radius", "label and l2 radius of every pixel")
    register("importance-band", "certframe.certifiers.importance_band:ImportanceBand",
             "importance of every pixel between two levels, all levels jointly")
    register("class", "certframe.certifiers.class_and:ClassAnd", "the predicted class jointly with another certificate")
    register("top-k-overlap", "certframe.certifiers.overlap:TopKOverlap", "how many of the top K stay in the top K")
    register("certified-rank", "certframe.certifiers.overlap:CertifiedRank", "the worst rank of every pixel")
    register("quantile", "certframe.certifiers.quantile:Quantile", "an interval for every pixel's real-valued score")


@hookimpl
def certframe_metrics(register: Register) -> None:
    """Numbers from certificates."""
    register("certified-rate", "certframe.metrics.certified_rate:CertifiedRate",
             "shares of certified important, certified unimportant and abstaining pixels")
    register("gridpg", "certframe.metrics.pointing:GridPG",
             "share of the positive importance in the cell of the class, on a grid of pictures")
    register("certified-gridpg", "certframe.metrics.pointing:CertifiedGridPG",
             "share of the certified important pixels in the cell of the class, on a grid of pictures")
    register("certified-faithfulness", "certframe.metrics.certified_faithfulness:CertifiedFaithfulness",
             "fall of the score while what is certified important is removed")
    register("deletion", "certframe.metrics.deletion:Deletion",
             "area under the score while the most important pixels are replaced")
    register("insertion", "certframe.metrics.deletion:Insertion",
             "area under the score while the most important pixels are revealed")
    register("mu-fidelity", "certframe.metrics.mu_fidelity:MuFidelity",
             "correlation of a set's importance with the fall of the score without it")
    register("localization", "certframe.metrics.localization:Localization",
             "overlap, energy and concentration of the importance in boxes, clean and certified")
    register("top-k-overlap", "certframe.metrics.top_k_overlap:TopKOverlap",
             "share of the top pixels that stays under noise, as observed")


@hookimpl
def certframe_datasets(register: Register) -> None:
    """Pictures."""
    register("folder", "certframe.datasets.folder:Folder", "a picture, a folder, class subfolders, or a CSV")
    register("imagenet", "certframe.datasets.imagenet:ImageNet",
             "ImageNet's validation images in the usual layouts, as imagenet:PATH")
    register("boxes", "certframe.datasets.boxes:Boxes",
             "pictures with boxes: Pascal-VOC XML, COCO JSON, JSON or CSV, as boxes:PATH")
    register("grid", "certframe.datasets.grid:Grid", "grids of pictures of different classes, as grid:FOLDER")
    register("cifar10", "certframe.datasets.arrays:Cifar10", "CIFAR-10 from its binary files, as cifar10:PATH")
    register("mnist", "certframe.datasets.arrays:Mnist", "MNIST from its idx files, as mnist:PATH")
    register("photos", "certframe.datasets.photos:Photos", "three photographs that scikit-image carries")
    register("digits", "certframe.datasets.digits:DigitImages", "held-out 8×8 digits, included")


@hookimpl
def certframe_executors(register: Register) -> None:
    """Places of work."""
    register("local", "certframe.executors.local:Local", "this process")
    register("processes", "certframe.executors.processes:Processes", "several processes of this machine")


@hookimpl
def certframe_commands(register: Register) -> None:
    """What ``certframe --help`` lists, in this order."""
    register("run", "certframe.cli.run:run", "Explain images, certify the explanations, write a run and a report.")
    register("plan", "certframe.cli.plan:plan", "Say what a run can certify and what it will cost, before it starts.")
    register("certify", "certframe.cli.certify:certify",
             "Certify the stored counts of a run again: other radii, confidences or certifiers.")
    register("verify", "certframe.cli.verify:verify",
             "Check a run: is everything what it was, and does it follow from the images and the model?")
    register("report", "certframe.cli.report:report", "Write the HTML report of a run again.")
    register("compare", "certframe.cli.compare:compare",
             "Compare methods, layers, noise levels and models over several runs.")
    register("list", "certframe.cli.listing:list_names", "List what is installed.")
    register("describe", "certframe.cli.describe:describe", "Say what a plugin does and list its options.")
    register("plugins", "certframe.cli.listing:plugins",
             "Show the installed plugin distributions, and which are broken.")
    register("plugin", "certframe.cli.plugin:app", "Write and check plugins.")
