"""Multiple-instance learning of tile labels: a finding is visible in an unknown subset of a patient's tiles."""

import numpy as np
from jaxtyping import Float, Int64

from clipit.errors import DataError
from clipit.evaluation.logistic import fit_logistic

_ROUNDS = 20


def assign_instances(
    features: Float[np.ndarray, "n d"],
    bags: Int64[np.ndarray, " n"],
    bag_labels: Int64[np.ndarray, " b"],
    background: int,
) -> Int64[np.ndarray, " n"]:
    """Choose the instances that carry the label of their bag: mi-SVM (Andrews et al., NIPS 2002) with a linear probe.

    All instances start with the label of their bag. Then, until no label changes or for at most 20 rounds, a logistic
    regression is fitted on standardised features, and an instance keeps the label of its bag if the regression finds
    that label at least as probable as the background. If no instance of a bag would keep the label, the instance with
    the highest log ratio of label to background keeps it. Bags of the background class contain only background.

    Args:
        background: Class of the instances that do not carry the label of their bag.

    Returns:
        Class of each instance: its bag's class, or `background`.

    Raises:
        DataError: No bag has the background class, or all bags have it.
    """
    from sklearn.preprocessing import StandardScaler

    bag_class = bag_labels[bags]
    if (bag_class == background).all() or not (bag_class == background).any():
        raise DataError(
            "tile selection needs patients with the background class as well as patients with other classes",
            where="own_report.background",
            fix="set this key to a class that some reports are labelled with, or use own_report.tiles=all",
        )
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    assigned = bag_class.copy()
    open_rows = np.flatnonzero(bag_class != background)
    for _ in range(_ROUNDS):
        model = fit_logistic(scaled, assigned)
        log_p = model.predict_log_proba(scaled[open_rows])
        column_of = {int(label): column for column, label in enumerate(model.classes_)}
        bag_log_p = log_p[np.arange(len(open_rows)), [column_of[label] for label in bag_class[open_rows].tolist()]]
        ratio = bag_log_p - log_p[:, column_of[background]]
        keeps_label = ratio >= 0
        order = np.lexsort((-ratio, bags[open_rows]))  # the most probable instance of each bag comes first
        first = np.unique(bags[open_rows][order], return_index=True)[1]
        keeps_label[order[first]] = True
        updated = np.where(keeps_label, bag_class[open_rows], background)
        if (updated == assigned[open_rows]).all():
            break
        assigned[open_rows] = updated
    return np.asarray(assigned, dtype=np.int64)
