# Every target is done by tools/course.py, which also serves where make is missing: python tools/course.py help
PYTHON ?= python3
N ?=
NAME ?=

.PHONY: course test test-fast setup real lesson store lab export results bench clean where help
help:    ; @$(PYTHON) tools/course.py help
course:  ; @$(PYTHON) tools/course.py run
test:    ; @$(PYTHON) tools/course.py test
test-fast: ; @$(PYTHON) tools/course.py test-fast
real:    ; @$(PYTHON) tools/course.py real $(N)
setup:   ; @$(PYTHON) tools/course.py setup
lesson:  ; @$(PYTHON) tools/course.py lesson $(N)
lab:     ; @$(PYTHON) tools/course.py lab
store:   ; @$(PYTHON) tools/course.py store $(N)
export:  ; @$(PYTHON) tools/course.py export
results: ; @$(PYTHON) tools/course.py results
bench:   ; @$(PYTHON) tools/course.py bench
clean:   ; @$(PYTHON) tools/course.py clean
where:   ; @$(PYTHON) tools/course.py where $(NAME)
