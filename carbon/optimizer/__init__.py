"""Which share of requests gets which directive level: pure functions over plain numbers, solved with HiGHS."""
