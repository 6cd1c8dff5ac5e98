"""The page of reliability is that of the last runs, and its tools notice what they are for."""

from __future__ import annotations

import sys

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests" / "reliability"))

import mutants
import report
import sanitize


def test_the_page_is_what_the_results_give():
    assert report.PAGE.read_text("utf-8") == report.page(), "run python tests/reliability/report.py"


def test_every_mended_finding_names_a_test_that_is_there():
    for finding in report.read("mended")["findings"]:
        file, _, name = finding["test"].partition("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(), finding["test"]


REPORT = """\
csrc/a.h:66:9: runtime error: null pointer passed as argument 2
    #0 0x7f in lirank::hash_bytes csrc/a.h:66
==7==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x60
    #0 0x7f in at::native (libtorch_cpu.so+0x1)
WARNING: ThreadSanitizer: data race (pid=7)
    #0 lirank::work (liblirank.so+0x2)
"""


def test_reports_count_where_a_frame_is_of_this_library():
    kinds = [report.partition("#0")[0] for report in sanitize.reports(REPORT)]
    assert len(kinds) == 2 and sanitize.reports("nothing\n") == []
    assert "null pointer" in kinds[0] and "data race" in kinds[1]


def test_changes_of_a_line():
    assert set(mutants.changes("  for (int i = 0; i < n; ++i) a[i] += b[i];")) == {
        "  for (int i = 1; i < n; ++i) a[i] += b[i];",
        "  for (int i = 0; i <= n; ++i) a[i] += b[i];",
        "  for (int i = 0; i < n; ++i) a[i] = b[i];",
    }
    assert "  ;" in set(mutants.changes("  at[2] = one + two;"))
    assert "  if (!(a < b)) return;" in set(mutants.changes("  if (a < b) return;"))
    for same in ("  // i < n", "#if A < 1", '  refuse("a < b");', "  prefetch(p + 1);", "}"):
        assert not list(mutants.changes(same))


def test_lines_of_other_instruction_sets_are_not_changed():
    text = "a\n#if LIRANK_ISA == 512\nb\n#elif LIRANK_ISA == 256\nc\n#else\nd\n#endif\ne\n"
    assert [line for _, line in mutants.compiled_lines(text)] == ["a", "b", "e"]
    found = {m.file for m in mutants.all_mutants()}
    assert found and not any("cuda" in file or file.startswith("kernels") for file in found)
