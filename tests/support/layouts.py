"""Layouts of every kind, for hypothesis. No outside world."""

from __future__ import annotations

from hypothesis import strategies as st

from server.megaphone.exports import METRICS
from server.triton import ColumnSpec, DerivedValue, Layout, LogFormat

columns = st.lists(
    st.one_of(
        st.builds(ColumnSpec, st.text(min_size=1), value=st.sampled_from([str(value) for value in DerivedValue])),
        st.builds(ColumnSpec, st.text(min_size=1), field=st.sampled_from(METRICS.fields)),
        st.builds(ColumnSpec, st.text(min_size=1), constant=st.text()),
    ),
    min_size=1,
).map(tuple)
layouts = st.builds(
    Layout,
    st.sampled_from(LogFormat),
    st.sampled_from(["plain", "comment", "none"]),
    st.sampled_from(["safe", "percent"]),
    st.none() | columns,
)
