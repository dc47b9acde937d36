"""Prepare data sets: conversion and checking."""
