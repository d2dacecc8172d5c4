"""Federation platforms; the only place that imports them."""
